import random

import numpy as np
import pytest

from fusion.align import Kind, align
from fusion.align_dtw import REASONS, agreement, align_dtw, as_alignment, token_texts
from fusion.pieces import encode, read_pieces
from tests.fusion.tiny_tokenizers import byte_fallback, byte_level

WORDS = ("the", " cat", " c", "at", " ", "  ", "", "é", " dé", "jà", "\n", "x", "<end>", " the", "THE")


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        row, old = [i], row
        for j, other in enumerate(b, 1):
            row.append(min(old[j] + 1, row[-1] + 1, old[j - 1] + (letter != other)))
    return row[-1]


def plain_warping(targets, sources, target_marker, source_marker):
    """The published way, written out: a double loop, then back by both, the target, the source."""

    def distance(a, b):
        bare, other = a.replace(source_marker, ""), b.replace(target_marker, "")
        if not bare or not other:
            bare, other = a.replace(source_marker, target_marker), b
        return edit_distance(bare, other)

    sums = [[0.0] * len(targets) for _ in sources]
    for i, a in enumerate(sources):
        for j, b in enumerate(targets):
            before = [sums[y][x] for y, x in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if y >= 0 and x >= 0]
            sums[i][j] = distance(a, b) + min(before, default=0)
    pairs = [[] for _ in targets]
    i, j = len(sources) - 1, len(targets) - 1
    while i >= 0 and j >= 0:
        pairs[j].append(i)
        if i == j == 0:
            break
        ways = ((i - 1, j - 1), (i, j - 1), (i - 1, j))
        costs = [sums[y][x] if y >= 0 and x >= 0 else np.inf for y, x in ways]
        i, j = ways[int(np.argmin(costs))]
    return [tuple(reversed(found)) for found in pairs]


@pytest.mark.parametrize("seed", range(25))
def test_it_is_the_published_warping(seed):
    draw = random.Random(seed)
    targets, sources = (draw.choices(WORDS, k=draw.randint(1, 12)) for _ in range(2))
    sources = [text.replace(" ", "▁") for text in sources]
    found = align_dtw(targets, sources, source_marker="▁")
    assert found == plain_warping(targets, sources, " ", "▁")


def test_equal_tokens_pair_with_themselves():
    assert align_dtw(["the", " cat", "!"], ["the", "▁cat", "!"], source_marker="▁") == [(0,), (1,), (2,)]


def test_pieces_of_a_token_pair_with_it():
    assert align_dtw(["the", " catch"], ["the", " cat", "ch"]) == [(0,), (1, 2)]
    assert align_dtw(["the", " cat", "ch"], ["the", " catch"]) == [(0,), (1,), (1,)]


def test_a_token_of_nothing_but_spaces_is_compared_as_it_is():
    assert align_dtw(["a", "  ", "b"], ["a", "▁▁", "b"], source_marker="▁") == [(0,), (1,), (2,)]


def test_nothing_pairs_with_nothing():
    assert align_dtw([], ["a"]) == []
    assert align_dtw(["a", "b"], []) == [(), ()]


def test_a_warping_reads_as_an_alignment():
    found = as_alignment([(0,), (1, 2), (3,), (3,), (4,)], 5)
    assert found.source.tolist() == [0, 2, -1, 3, 4]
    told = [Kind(kind).name for kind in found.kind]
    assert told == ["ONE_TO_MANY", "MANY_TO_ONE", "UNALIGNED", "ONE_TO_ONE", "LAST"]
    assert found.pieces.tolist() == [2, 2, 0, 1, 0]


def test_disagreements_are_counted_by_reason():
    right = as_alignment([(0,), (1, 2), (), (4,), (5,)], 6)
    counts = agreement([(0,), (1, 2, 3), (3,), (3,), (5,)], right)
    assert counts == {"agree": 2, "not the last": 1, "no shared end": 1, "elsewhere": 1}
    assert set(counts) == set(REASONS)


def test_on_easy_text_both_ways_agree_wherever_tokens_share_an_end():
    text = "the cat sees the dog and the dog sees the cat"
    models = (byte_level([text], 290), byte_fallback([text], 400))
    read = [read_pieces(model) for model in models]
    target, source = (encode(model, pieces, text, bos=False) for model, pieces in zip(models, read, strict=True))
    matches = align_dtw(token_texts(read[0], target), token_texts(read[1], source))
    counts = agreement(matches, align(target, source))
    assert counts["elsewhere"] + counts["not the last"] <= counts["agree"] / 4
    assert sum(counts.values()) == len(target)


def test_parts_of_characters_all_look_alike():
    model = byte_level(["a"], 262)
    pieces = read_pieces(model)
    assert token_texts(pieces, encode(model, pieces, "a👍", bos=False)) == ["a", *"\ufffd" * 4]
