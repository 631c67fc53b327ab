"""What an alignment report counts, and that nothing in it can act as Markdown."""

import json
import math
import re

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fusion.align import align
from fusion.alignment_examples import name_of
from fusion.alignment_markdown import as_markdown, code
from fusion.alignment_report import Cost, Model, Said, Survey, report
from fusion.chats import Chat
from fusion.errors import FusionError
from fusion.pieces import Encoded, Pieces
from fusion.project import project
from fusion.teacher_shards import TeacherRow
from fusion.token_maps import exact_map

TARGET = ["<s>", "Hi ", "a", "b", "c", "`|\n", "\u202e<b>"]
SOURCE = ["<s>", "Hi ", "ab", "c", "`|\n", "\u202e<b>", "q"]


def vocabulary(words: list[str]) -> Pieces:
    text = (None, *(word.encode() for word in words[1:]))
    return Pieces(len(words), text, {0: "bos"}, {0: b"<s>"})


def written(words: list[str], known: list[str]) -> Encoded:
    ends = np.cumsum([0 if word == "<s>" else len(word.encode()) for word in words]).astype(np.int64)
    starts = np.concatenate(([0], ends[:-1]))
    return Encoded(np.array([known.index(word) for word in words], np.int32), starts, ends)


def heard(encoded: Encoded, p: float, size: int) -> TeacherRow:
    """A model that gives each next token ``p``, and half of the rest to another token."""
    n = len(encoded.ids)
    real = np.append(encoded.ids[1:], 0)
    top = np.stack([real, (real + 1) % size], axis=1).astype(np.int32)
    logs = np.log(np.broadcast_to([p, (1 - p) / 2], (n, 2))).astype(np.float32)
    return TeacherRow("chat", encoded.ids, encoded.ends, np.append(logs[1:, 0], np.nan).astype(np.float32), top, logs)


def surveyed(*, said: bool = True, source: str = "source") -> Survey:
    """Two conversations "Hi abc…", of which all but "Hi " counts; ab is one token of the source's."""
    tails = ["c", "`|\n", "\u202e<b>"]
    target, theirs = written(["<s>", "Hi ", "a", "b", *tails], TARGET), written(["<s>", "Hi ", "ab", *tails], SOURCE)
    token_map = exact_map(vocabulary(SOURCE), vocabulary(TARGET))
    survey = Survey(Model("target", vocabulary(TARGET)), [Model(source, vocabulary(SOURCE), token_map)])
    alignment, own = align(target, theirs), align(target, target)
    text = "Hi ab" + "".join(tails)
    rows = heard(target, 0.25, len(TARGET)), heard(theirs, 0.5, len(SOURCE))
    parts = project(rows[0], target, own, None), project(rows[1], target, alignment, token_map)
    for number, nll in enumerate(([1.4, 0.7], [0.5, math.nan])):
        chat = Chat(f"chat {number}", text, ((3, len(text.encode())),))
        told = Said(rows, parts, np.array(nll)) if said else None
        survey.add(chat, target, [theirs], [alignment], told)
    return survey


def test_positions_are_counted_by_kind_all_and_those_that_count():
    found = report(surveyed())
    assert found["conversations"] == found["heard"] == 2
    assert found["positions"] == {"all": 14, "supervised": 10}
    kinds = found["sources"][0]["kinds"]
    assert {name: (n["all"], n["supervised"]) for name, n in kinds.items()} == {
        "one to one": (8, 6),
        "one to many": (0, 0),
        "many to one": (2, 2),
        "split": (0, 0),
        "unaligned": (2, 2),
        "last": (2, 0),
    }
    assert kinds["one to one"]["share"] == pytest.approx(0.6)


def test_surprise_and_wins_are_told_of_every_model():
    target, source = report(surveyed())["models"]
    assert (target["role"], target["tokens"], source["role"], source["tokens"]) == ("target", 14, "source", 12)
    assert target["nats_a_token"] == pytest.approx(math.log(4))
    assert source["nats_a_token"] == pytest.approx(math.log(2))
    supervised_bytes = 2 * len("abc`|\n\u202e<b>".encode())
    assert target["bits_a_byte"] == pytest.approx(2 * 10 / supervised_bytes)
    assert source["bits_a_byte"] == pytest.approx(1 * 8 / supervised_bytes)
    assert (target["wins"], source["wins"], source["share_won"]) == (1, 1, 0.5)


def test_the_mass_kept_is_what_the_projection_kept():
    [source] = report(surveyed())["sources"]
    # Of the four aligned positions ab goes to a, which the text says, and c is kept; `|\n likewise; at \u202e<b> the
    # other likeliest is q, which the target has not.
    kept = [0.75, 0.75, 0.75, 0.5]
    assert source["kept"]["positions"] == 8
    assert source["kept"]["mean"] == pytest.approx(np.mean(kept))
    assert source["kept"]["quantiles"]["5%"] == pytest.approx(0.5)
    assert source["kept"]["quantiles"]["50%"] == pytest.approx(0.75)
    assert source["teacher"]["mean"] == pytest.approx(0.75)
    vocabulary_ = source["vocabulary"]
    assert vocabulary_["exact"]["tokens"] == 4
    assert sum(n["tokens"] for n in vocabulary_.values()) == len(SOURCE)
    assert sum(n["mass"] for n in vocabulary_.values()) == pytest.approx(1.0)
    assert_allclose([vocabulary_["exact"]["mass"], vocabulary_["none"]["mass"]], [2.25 / 3, 0.75 / 3])


def test_examples_show_both_models_tokens_and_what_they_expect():
    [source] = report(surveyed())["sources"]
    shown = next(one for one in source["examples"] if one["kind"] == "many to one")
    assert shown["before"] == "Hi "
    assert (shown["target"], shown["source"]) == (["a", "b"], ["ab"])
    assert shown["expected"] == [["ab", 0.5], ["c", 0.25]]
    assert shown["projected"] == [["a", 0.5], ["c", 0.25]]
    alone = next(one for one in source["examples"] if one["kind"] == "unaligned")
    assert (alone["target"], alone["source"], alone["expected"]) == (["b"], ["ab"], None)
    assert max(sum(one["kind"] == kind for one in source["examples"]) for kind in source["kinds"]) == 2


def test_before_any_model_is_heard_tokenizers_alone_are_reported():
    survey = surveyed(said=False)
    found = report(survey, {"target": Cost(parameters=10), "source": Cost(bytes=100, seconds=2.5)})
    target, source = found["models"]
    assert (target["nats_a_token"], target["wins"], found["sources"][0]["kept"]["mean"]) == (None, None, None)
    assert (target["forward_flops"], target["bytes"], target["bytes_are"]) == (280, 14 * 48, "at most")
    assert (source["forward_flops"], source["bytes"], source["bytes_are"], source["seconds"]) == (
        None,
        100,
        "measured",
        2.5,
    )
    assert "2.80e+02 floating-point operations" in as_markdown(found)


def test_at_token_level_positions_are_won():
    text = written(["<s>", "Hi ", "a"], TARGET)
    model, row, alignment = Model("one", vocabulary(TARGET)), heard(text, 0.5, len(TARGET)), align(text, text)
    survey = Survey(model, [model])
    part = project(row, text, alignment, None)
    nll = np.array([[1.0, 1.0, np.nan], [0.5, 1.0, np.nan]])
    survey.add(Chat("x", "Hi a", ((0, 4),)), text, [text], [alignment], Said([row] * 2, [part] * 2, nll))
    found = report(survey)
    assert found["wins_are"] == "positions"
    assert [model["wins"] for model in found["models"]] == [1, 1]


def test_a_report_is_json_and_reads_as_markdown():
    found = report(surveyed())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    page = as_markdown(found)
    for heading in ("# Alignment", "## `source`", "### Many to one"):
        assert heading in page.splitlines()
    assert "| one to one | 8 | 6 | 60.0% |" in page


def test_hostile_texts_stay_inside_code_spans():
    page = as_markdown(report(surveyed(source="x|`<script>\n# no")))
    assert "\u202e" not in page
    assert "# no" not in page.splitlines()
    outside = re.sub(r"(?<!`)(`+)(?!`)(.*?)(?<!`)\1(?!`)", "", page)
    assert "<" not in outside
    for line in outside.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (5, 6, 8, 9)  # of the four tables


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a", "`a`"),
        ("", "(nothing)"),
        (" a ", "`␣a␣`"),
        ("  ", "`␣␣`"),
        ("`", "`` ` ``"),
        ("a``b", "```a``b```"),
        ("a\nb\x00", r"`a\nb\u0000`"),
        ("\ufeff\U000e0041", r"`\ufeff\U000e0041`"),
        ("a|b", "`a|b`"),
    ],
)
def test_a_code_span_holds_one_visible_line(text: str, wanted: str):
    assert code(text) == wanted
    assert code("a|b", table=True) == r"`a\|b`"


def test_a_token_is_called_by_its_text_its_role_or_its_number():
    pieces = Pieces(4, (None, b"a", b"\xf0\x9f", None), {0: "bos"}, {0: b"<s>"})
    assert [name_of(token, pieces) for token in (0, 1, 2, 3, 9)] == ["<bos>", "a", r"\xf0\x9f", "<3>", "<9>"]


def test_a_source_without_its_encoding_is_refused():
    target = written(["<s>", "Hi "], TARGET)
    with pytest.raises(FusionError, match="0 encodings and 0 alignments for 1 sources"):
        surveyed().add(Chat("x", "Hi ", ()), target, [], [])
