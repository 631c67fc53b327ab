"""What is printed: whatever names and texts hold, the terminal gets what it can show."""

import contextlib
import io
import json

import pytest

from fuseval.terminal import say, show, stages

ODD = "m\ud800 \x1b[31mred \u202eturned [/nothing] \xe9"


def printed(encoding, call):
    """Return what ``call`` writes to standard output and to standard error, where these have this encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="") for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        call()
    for stream in streams:
        stream.flush()
    return [stream.buffer.getvalue().decode(encoding) for stream in streams]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_name_that_cannot_be_written_is_shown_all_the_same(encoding):
    shown, _ = printed(encoding, lambda: show([{ODD: ODD}], as_json=False, title=ODD))
    assert shown.count("m?") == 3
    assert "[/nothing]" in shown
    assert not {"\x1b", "\u202e"} & set(shown)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_message_is_said_without_what_a_terminal_would_act_on(encoding):
    _, said = printed(encoding, lambda: say(ODD, "second\nline"))
    assert said.startswith("m? [31mred turned [/nothing] ")
    assert said.endswith("second\nline\n")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_json_holds_every_name_as_it_is(encoding):
    written, _ = printed(encoding, lambda: show([{"model": ODD}], as_json=True, title=""))
    assert json.loads(written) == [{"model": ODD}]


def test_a_stage_may_be_called_anything(capfd):
    with stages() as watch:
        watch(f"import {ODD}.jsonl", 1, 2)
    assert "import m?" in capfd.readouterr().err
