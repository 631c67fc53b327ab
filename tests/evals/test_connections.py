"""Where requests go, read off a base URL and the environment."""

from __future__ import annotations

import pytest

from evals.connections import Site, read_site
from evals.pace import Pace


def site(base_url: str, *, has_key: bool = False) -> Site:
    return read_site(base_url, has_key=has_key, pace=Pace(most=1))


@pytest.mark.parametrize("base_url", ["http://host:8000/v1", "http://host:8000/v1/"])
def test_chat_completions_stand_below_the_base_url(base_url: str) -> None:
    assert str(site(base_url).url) == "http://host:8000/v1/chat/completions"
    assert site(base_url).place == "http://host:8000/v1"


def test_a_query_in_the_base_url_stays_at_the_end_as_azure_wants_it() -> None:
    azure = site("https://mine.test/openai/deployments/judge?api-version=2024-10-21")
    assert str(azure.url) == "https://mine.test/openai/deployments/judge/chat/completions?api-version=2024-10-21"


def test_a_password_in_the_base_url_is_used_but_never_shown_and_gives_way_to_a_key() -> None:
    plain, keyed = site("http://me:secret@host/v1"), site("http://me:secret@host/v1", has_key=True)
    assert (plain.url.password, keyed.url.password) == ("secret", None)
    assert plain.place == keyed.place == "http://host/v1"


def test_the_proxy_of_the_environment_is_taken_but_for_hosts_that_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.test:3128")
    monkeypatch.setenv("no_proxy", "127.0.0.1,inside.test")
    assert site("http://outside.test/v1").proxy == "http://proxy.test:3128"
    assert site("http://inside.test/v1").proxy is None
    assert site("http://127.0.0.1:8000/v1").proxy is None


def test_a_url_without_a_host_is_refused() -> None:
    with pytest.raises(ValueError, match="'http:///v1' names no host"):
        site("http:///v1")
