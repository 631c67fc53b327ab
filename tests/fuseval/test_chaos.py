"""A thousand judgments from a server that fails in every way, by a client that is killed five times."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import duckdb
import pytest
import yaml

from evals import starter
from evals.chat import FAILURES
from tests.fake_replies import LASTING, PASSING, mishaps
from tests.fake_server import FakeServer, default_text

CANDIDATES = 33  # the base and 32 others: 32 · 16 questions · 2 orders
CONCURRENCY = 16
LATENCY = 0.2
KILLS = 5
OPEN = [q.id for q in starter.questions() if q.check is None]


def start(folder):
    environ = {**os.environ, "FUSEVAL_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "fuseval", "run", "run.yaml", "--questions", ",".join(OPEN)]
    return subprocess.Popen(command, cwd=folder, env=environ, stderr=subprocess.PIPE, text=True, encoding="utf-8")


def table(folder, query):
    with duckdb.connect(str(folder / "fuseval.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def models(base_url):
    names = ["base", *(f"m{n}" for n in range(1, CANDIDATES)), "judge"]
    endpoint = {"base_url": base_url, "concurrency": CONCURRENCY, "max_attempts": 3, "timeout": 5.0}
    return [{"name": n, "endpoint": {**endpoint, "model": n}, "evaluate": n != "judge"} for n in names]


@pytest.mark.slow
def test_after_five_kills_every_request_has_one_judgment_or_one_failure_and_none_was_paid_for_twice(tmp_path):
    good: Counter[str] = Counter()  # replies that could be used, by the judge's prompt
    lock = threading.Lock()

    def reply(body):
        if body["model"] != "judge":
            return f"{body['model']} says: {default_text(body)}"
        with lock:
            good[str(body["messages"])] += 1
        return default_text(body)

    go_wrong = mishaps(0.12, seed=1, kinds=PASSING | LASTING)
    with FakeServer(reply=reply, script=go_wrong, latency=LATENCY, keep=False) as server:
        experiment = {"models": models(server.base_url), "benchmarks": ["starter"], "judges": [{"model": "judge"}]}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({**experiment, "report": None, "coverage": 0.0}))
        for kill in range(1, KILLS + 1):
            process = start(tmp_path)
            while process.poll() is None and good.total() < kill * 150:
                time.sleep(0.01)
            assert process.poll() is None, process.communicate()
            process.send_signal(signal.SIGKILL)
            process.communicate()
        for _ in range(4):  # what failed in passing is asked again by the next run, and may fail again
            process = start(tmp_path)
            _, told = process.communicate()
            assert process.returncode == 0, told
            if not any(FAILURES[kind] for (kind,) in table(tmp_path, "SELECT kind FROM failures")):
                break

    requests = {key for (key,) in table(tmp_path, "SELECT judgment FROM judge_requests")}
    judgments = [key for (key,) in table(tmp_path, "SELECT key FROM judgments")]
    failures = [key for (key,) in table(tmp_path, "SELECT key FROM failures WHERE stage = 'judge'")]
    assert len(requests) > 900  # of 1,024; some answers failed for good
    assert len(judgments) == len(set(judgments))
    assert not set(judgments) & set(failures)
    assert set(judgments) | set(failures) == requests
    assert {kind for (kind,) in table(tmp_path, "SELECT kind FROM failures")} <= {
        k for k, v in FAILURES.items() if not v
    }
    # What a kill loses was in flight, or came within the second in which it is promised to be stored.
    lost = KILLS * (CONCURRENCY + CONCURRENCY / LATENCY)
    assert sum(count - 1 for count in good.values()) <= lost
