"""The live report over real sockets, of a ledger that this process or another one fills."""

import http.client
import time
from urllib.parse import urlsplit

import pytest

from evals.records import Answer, Model, Sampling
from evals.starter import questions
from fuseval.config import ConfigError
from fuseval.serving import serve, serving
from results.snapshot import answering_requests
from results.store import Ledger


def no_asset(name):
    raise AssertionError(f"{name} is not needed")


def get(address, path="/", *, method="GET", host=None):
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=20)
    connection.request(method, path, headers={"Host": host or place.netloc})
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, text, reply.headers


def until(address, words, *, path="/"):
    end = time.monotonic() + 60
    while words not in (text := get(address, path)[1]):
        assert time.monotonic() < end, text
        time.sleep(0.1)
    return text


def answered(ledger, number):
    q = [q for q in questions() if q.check == "final_number"][number]
    ledger.add(Model("id", "sce", "merge", "made"), q)
    text = f"Answer: {q.reference[-1]}"
    ledger.add(Answer(q.id, "id", "starter", "1", q.id, 1, text, "stop", 1, 1, 0.0, 0, Sampling()))


@pytest.fixture
def address(tmp_path):
    """The address of a live report, and the open ledger that it is about."""
    with Ledger.open(tmp_path / "l.duckdb") as ledger, answering_requests(ledger):
        answered(ledger, 0)
        ledger.flush()
        with serving(tmp_path / "l.duckdb", title="fusions", port=0, asset=no_asset, every=1) as address:
            yield address, ledger


@pytest.mark.slow
def test_a_ledger_being_filled_is_shown_scored_and_again_when_it_has_grown(address):
    address, ledger = address
    first = until(address, "Scores so far")
    assert "while it is being filled" in first
    assert '<td>sce</td><td class="number">1</td><td class="number">1</td>' in first
    assert "100.0" in first  # though the writer has not scored anything
    status, page, _ = get(address, "/report.html")
    assert (status, "fusions" in page) == (200, True)
    answered(ledger, 1)
    until(address, '<td>sce</td><td class="number">2</td>')
    assert ledger.scores() == []  # the ledger itself is only read


@pytest.mark.slow
def test_only_its_own_address_is_answered_and_only_reading(address):
    address, _ = address
    assert get(address, host="rebound.example")[0] == 421
    assert get(address, host="localhost:1")[0] == 421
    for method in ("POST", "PUT", "DELETE"):
        assert get(address, method=method)[0] == 501
    until(address, "Scores so far")
    for path in ("/copy.duckdb", "/../copy.duckdb", "/%2e%2e/copy.duckdb", "//etc/passwd", "/report.html/", "/."):
        assert get(address, path)[0] == 404
    status, text, headers = get(address, "/?x=1", method="HEAD")
    assert (status, text, headers["X-Frame-Options"], headers["Cache-Control"]) == (200, "", "DENY", "no-store")


def test_a_port_in_use_and_a_ledger_that_is_not_there_are_said(tmp_path):
    with Ledger.open(tmp_path / "l.duckdb"):
        pass
    given = {"title": "fusions", "asset": no_asset}
    with serving(tmp_path / "l.duckdb", port=0, **given) as address:
        port = urlsplit(address).port
        with (
            pytest.raises(ConfigError, match=f"port {port} cannot be had"),
            serving(tmp_path / "l", port=port, **given),
        ):
            pass
    with pytest.raises(ConfigError, match="there is no ledger"):
        serve(tmp_path / "no.duckdb", port=0, ready=print, **given)
