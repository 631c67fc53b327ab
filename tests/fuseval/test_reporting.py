"""`fuseval report` in all its forms, and a data set uploaded to a server that speaks as the Hub does."""

import base64
import contextlib
import csv
import http.server
import json
import os
import threading

import pytest
from typer.testing import CliRunner

from evals.records import Difference, Model, Score
from fuseval.cli import app
from results.store import Ledger

ABOUT = ("alpaca_eval", "2.0", "judge", "base", "win_rate")
TOKEN = "hf_secret"


def report(folder, *arguments, **environ):
    with contextlib.chdir(folder):
        done = CliRunner(env={"FUSEVAL_CACHE": str(folder / "cache"), **environ}).invoke(app, ["report", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path):
    with Ledger.open(tmp_path / "fuseval.duckdb") as ledger:
        ledger.add(*(Model(name, name, "merge", "made") for name in ("base", "sce", "ties", "judge")))
        ledger.add(Score("sce", *ABOUT, 60.0, 55.0, 65.0, 9, 0), Score("ties", *ABOUT, 52.0, 45.0, 58.0, 9, 0))
        ledger.add(
            Difference("sce", "base", *ABOUT, 10.0, 5.0, 15.0, 0.001, 9, 0, 0.002, 8.0),
            Difference("ties", "base", *ABOUT, 2.0, -5.0, 8.0, 0.6, 9, 0, 0.6, 8.0),
        )
    return tmp_path


def test_statements_say_what_is_shown_and_what_would_have_been_found(folder):
    code, out, err = report(folder, "--statements")
    assert code == 0, err
    first, second = out.splitlines()
    assert first.startswith("sce beats base on alpaca_eval win_rate by 10.0 [5.0, 15.0] points as judged by judge")
    assert second.startswith("no difference shown between ties and base")
    assert "one of 8.0 would be found four times in five" in second
    verdicts = [row["verdict"] for row in json.loads(report(folder, "--statements", "--json")[1])]
    assert verdicts == ["better", "none"]


def test_a_name_cannot_steer_the_terminal(folder):
    with Ledger.open(folder / "fuseval.duckdb") as ledger:
        ledger.add(Model("ties", "ti\x1b[2Jes\n\u202e", "merge", "made"))
    _, out, _ = report(folder, "--statements")
    assert "ti⟨U+001B⟩[2Jes ⟨U+202E⟩" in out
    assert "\x1b" not in out


def test_differences_come_in_every_format(folder):
    starts = {"--json": "[", "--csv": "model,other,", "--markdown": "| model | minus |", "--latex": "\\begin{tabular}"}
    for flag, start in starts.items():
        code, out, err = report(folder, "--differences", flag)
        assert (code, out.startswith(start)) == (0, True), err


def test_figures_are_written_where_they_are_wanted(folder):
    code, _, err = report(folder, "--figures", "drawn")
    assert code == 0, err
    assert (folder / "drawn" / "differences-alpaca_eval-2.0.pdf").stat().st_size > 1_000
    assert not (folder / "report.html").exists()


def test_a_model_card_is_made_and_made_anew(folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    for _ in range(2):
        code, _, err = report(folder, "--model-card", "sce")
        assert code == 0, err
    card = (folder / "README.md").read_text()
    assert (card.count("license: mit"), card.count("Mine."), card.count("sce beats base")) == (1, 1, 1)
    assert "ties" not in card
    (folder / "README.md").write_text("---\na: [\n---\nMine.\n")
    code, _, err = report(folder, "--model-card", "sce")
    assert (code, "README.md is not changed" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--statements", "--differences"], "--differences and --statements are different tables"),
        (["--statements", "--csv"], "--statements prints sentences, not --csv"),
        (["--leaderboard-rows", "alpaca_evil"], "Did you mean 'alpaca_eval'"),
        (["--leaderboard-rows", "arena_hard", "--latex"], "own CSV, not --latex"),
        (["--model-card", "sec"], "Did you mean 'sce'"),
        (["--model-card", "judge"], "'judge' has no scores"),
        (["--publish", "board"], "'board' names no data set of the Hub"),
        (["--yes"], "--yes goes with --publish"),
        (["--context", "fastchat"], "no leaderboard is called 'fastchat'"),
    ],
)
def test_what_does_not_go_together_is_refused(folder, arguments, message):
    code, _, err = report(folder, *arguments)
    assert (code, message in err) == (2, True), err


@pytest.fixture
def hub():
    """A server that takes data sets as the Hub does, and what it was sent: (path, authorization, body)."""
    sent = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent.append((self.path, self.headers["Authorization"], body.decode()))
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self.reply(401, {"error": "Invalid credentials"})
            elif self.path.endswith("/preupload/main"):
                files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                         for f in json.loads(body)["files"]]  # fmt: skip
                self.reply(200, {"files": files})
            elif self.path.endswith("/commit/main"):
                self.reply(200, {"commitUrl": f"{self.place()}/commit/1", "commitOid": "1"})
            else:
                self.reply(200, {"url": self.place()})

        def place(self):
            return f"http://{self.headers['Host']}/datasets/me/board"

        def reply(self, code, told):
            text = json.dumps(told).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", sent
        server.shutdown()


def test_publishing_writes_a_folder_and_sends_nothing_unless_told_to(folder, hub):
    address, sent = hub
    code, _, err = report(folder, "--publish", "me/board", HF_ENDPOINT=address, HF_TOKEN=TOKEN)
    assert (code, "nothing was sent" in err, sent) == (0, True, [])
    assert sorted(os.listdir(folder / "board")) == ["README.md", "differences.jsonl", "leaderboard.jsonl"]


def test_a_folder_that_holds_something_else_is_left_alone(folder):
    (folder / "merged").mkdir()
    (folder / "merged" / "README.md").write_text("A checkpoint's card.")
    code, _, err = report(folder, "--publish", "me/board", "-o", "merged")
    assert (code, "holds other things than a leaderboard" in err) == (2, True)
    assert os.listdir(folder / "merged") == ["README.md"]


def test_what_is_published_is_the_folder_and_the_token_stands_in_the_variable_that_is_named(folder, hub):
    address, sent = hub
    named = {"HF_ENDPOINT": address, "MY_TOKEN": TOKEN, "HF_TOKEN": ""}
    code, _, err = report(folder, "--publish", "me/board", "--yes", "--token-env", "MY_TOKEN", **named)
    assert code == 0, err
    assert [path for path, _, _ in sent] == [
        "/api/repos/create", "/api/validate-yaml", "/api/datasets/me/board/preupload/main",
        "/api/datasets/me/board/commit/main",
    ]  # fmt: skip
    assert json.loads(sent[0][2])["visibility"] == "private"
    files = [json.loads(line)["value"] for line in sent[-1][2].splitlines()][1:]
    for file in files:
        assert base64.b64decode(file["content"]) == (folder / "board" / file["path"]).read_bytes()
    assert {file["path"] for file in files} == set(os.listdir(folder / "board"))


def test_a_refusal_and_a_missing_token_are_said_and_the_token_is_not(folder, hub):
    address, _ = hub
    code, out, err = report(folder, "--publish", "me/board", "--yes", HF_ENDPOINT=address, HF_TOKEN="wrong-token")
    assert (code, "did not take me/board" in err, "wrong-token" in out + err) == (1, True, False)
    code, _, err = report(folder, "--publish", "me/board", "--yes", HF_ENDPOINT=address, HF_TOKEN="")
    assert (code, "in the environment variable HF_TOKEN" in err) == (2, True)


@pytest.fixture
def published(tmp_path):
    """A ledger of published annotations, and the folder that they come from."""
    if "FUSEVAL_ASSETS" not in os.environ:
        pytest.skip("set FUSEVAL_ASSETS to a folder with the assets under their names (`fuseval assets` lists them)")
    from pathlib import Path

    assets = Path(os.environ["FUSEVAL_ASSETS"])
    given = {"env": {"FUSEVAL_CACHE": str(tmp_path / "cache")}, "catch_exceptions": False}
    ledger = str(tmp_path / "fuseval.duckdb")
    source = str(assets / "published/alpaca_eval/FuseChat-Llama-3.1-8B-Instruct")
    for command in (["import", "alpaca_eval", source], ["score"]):
        assert CliRunner().invoke(app, [*command, "--ledger", ledger], **given).exit_code == 0
    return tmp_path, assets


@pytest.mark.slow
def test_published_annotations_give_the_row_that_was_published_and_stand_beside_it(published):
    folder, assets = published
    code, out, err = report(folder, "--leaderboard-rows", "alpaca_eval")
    assert code == 0, err
    [row] = csv.DictReader(out.splitlines())
    board = (assets / "alpaca_eval/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv").read_text().splitlines()
    [there] = [each for each in csv.DictReader(board) if each[""] == row[""]]
    number = {name: float(there[name]) for name in there if name not in ("", "mode")}
    assert {name: float(row[name]) for name in number} == pytest.approx(number, abs=1e-9)
    assert row["mode"] == there["mode"] == "community"
    rows = json.loads(report(folder, "--json", "--context", "alpaca_eval=FuseChat-Llama-3.1*")[1])
    values = {row["value"] for row in rows if row["metric"] == "lc_win_rate"}
    assert len([row for row in rows if row["metric"] == "lc_win_rate"]) == 2
    assert max(values) == pytest.approx(min(values), abs=1e-9)
    assert ["published in tatsu-lab/alpaca_eval@cd543a1"] in [row["flags"] for row in rows]
    code, out, err = report(folder, "-o", "report.html", "--context", "alpaca_eval=gpt4_1106_preview")
    assert (code, out) == (0, ""), err
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'data-model="gpt4_1106_preview"' in page and "published in tatsu-lab/alpaca_eval@cd543a1" in page
