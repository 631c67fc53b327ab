"""Near-duplicates against the similarity that all pieces of two texts give."""

import random

import pytest

from judges.near_duplicates import KEPT, SHINGLE, near_duplicates, normalised, similarity, sketches


def jaccard(one, other):
    pieces = [{text[n : n + SHINGLE] for n in range(len(text) - SHINGLE + 1)} for text in (one, other)]
    return len(pieces[0] & pieces[1]) / len(pieces[0] | pieces[1])


def prose(seed, words=300):
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(words))


def edited(text, share, seed=0):
    draw = random.Random(seed)
    return " ".join("changed" if draw.random() < share else word for word in text.split())


@pytest.mark.parametrize("share", [0.0, 0.01, 0.03, 0.1, 0.5])
def test_sketches_tell_the_similarity_of_texts(share):
    text = prose(1)
    other = edited(text, share)
    assert similarity(*sketches([text, other])) == pytest.approx(jaccard(text, other), abs=0.15)


@pytest.mark.parametrize("text", [prose(1), "x" * 5000, "ab" * 3000, "sixteen letters!", prose(2, words=40)])
def test_a_text_is_its_own_double(text):
    assert similarity(*sketches([text, text])) == 1.0
    [found] = sketches([text])
    assert found == sorted(set(found))[:KEPT]


def test_short_texts_repeat_only_what_equals_them():
    assert near_duplicates(["yes", "no", "yes", "", ""]) == [0, None, 0, 3, 3]


def test_each_text_names_the_first_that_it_repeats():
    one, two = prose(1), prose(2)
    texts = [one, two, edited(one, 0.005), prose(3), edited(two, 0.005, seed=1), one]
    assert near_duplicates(texts) == [0, 1, 0, None, 1, 0]


def test_capitals_and_white_space_do_not_count_once_normalised():
    assert normalised(" A\n\tB  c ") == "a b c"


def test_a_thousand_equal_texts_are_found_as_quickly_as_different_ones():
    assert near_duplicates([prose(1)] * 1000) == [0] * 1000


def test_a_text_has_the_same_sketch_in_any_company():
    texts = [prose(1), "", "short", "x" * 3000, prose(2, words=5), "sixteen letters!", "fifteen letters", prose(3)]
    assert sketches(texts) == [found for text in texts for found in sketches([text])]
    assert sketches([]) == []
