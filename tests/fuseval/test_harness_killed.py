"""A run of lm-eval's tasks that is killed goes on task by task and sample by sample, and ends as if it never was."""

import json
import os
import signal
import subprocess
import sys
import time

import duckdb
import pytest
import yaml

from tests.evals.lm_task_files import GENERATIVE, task_file
from tests.fake_server import FakeServer
from tests.fuseval.test_run import fuseval

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # of datasets, when it is imported

DOCS = [{"question": f"{a} + {b}", "answer": str(a + b)} for a in range(2, 6) for b in range(3, 11)]


def experiment(folder, base_url):
    folder.mkdir()
    for task in ("sums", "more"):
        task_file(folder, GENERATIVE, DOCS, task=task)
    options = {"fewshot_split": "test", "apply_chat_template": True}
    endpoint = {"base_url": base_url, "concurrency": 2, "max_attempts": 2}
    given = {
        "models": [{"name": name, "endpoint": {**endpoint, "model": name}} for name in ("base", "tuned")],
        "benchmarks": [{"name": f"lm_eval:{t}.yaml", "options": {**options, "data": t}} for t in ("sums", "more")],
        "report": None,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(given))
    return folder


def says(body):
    """Add, wrongly where the model's name and the question say so."""
    question = body["messages"][-1]["content"]
    a, b = map(int, question.split("Question: ")[-1].split("\n")[0].split(" + "))
    return str(a + b + (len(body["model"]) * a * b) % 3 % 2)


def prompt(body):
    return json.dumps([body["model"], body["messages"]])


def stored(folder):
    query = "SELECT m.name, benchmark, question, key FROM answers JOIN models m ON id = model"
    with duckdb.connect(str(folder / "fuseval.duckdb")) as ledger:  # as the next run opens it after a kill
        return ledger.execute(query).fetchall()


def finished(folder):
    code, out, err = fuseval(folder, "run", "run.yaml", "--json")
    assert code == 0, err
    return out


def test_a_killed_run_asks_nothing_twice_that_it_stored_and_ends_with_the_same_table(tmp_path):
    with FakeServer(reply=says) as server:
        whole = finished(experiment(tmp_path / "whole", server.base_url))
        asked = {prompt(body) for body in server.bodies}
    with FakeServer(reply=says, latency=0.15) as server:
        folder = experiment(tmp_path / "killed", server.base_url)
        command = [sys.executable, "-m", "fuseval", "run", "run.yaml"]
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, "FUSEVAL_CACHE": str(folder / "cache")})
        while process.poll() is None and server.count < 45:  # 32 of the first task, and some of the second
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before, count = stored(folder), server.count
        assert {(name, task) for name, task, *_ in before} == {("base", "lm_eval:sums"), ("base", "lm_eval:more")}
        assert finished(folder) == whole
        after = stored(folder)
    assert set(before) < set(after) and len(after) == 4 * len(DOCS) == len({key for *_, key in after})
    assert {prompt(body) for body in server.bodies} == asked
    assert server.count - count == len(after) - len(before)  # what is stored is not asked again
    assert count - len(before) <= 2 + 2 / 0.15  # in flight, or come within the second in which it is stored
