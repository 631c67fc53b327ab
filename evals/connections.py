"""Where a model is asked: one :class:`Site` for each base URL, and the HTTP session that they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.pace import Pace

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

CONNECT = 20.0  # seconds to wait for a connection


@dataclass(slots=True, eq=False)
class Site:
    """One base URL: ``place`` is its name in messages, ``url`` where requests go."""

    place: str
    url: URL
    proxy: str | None
    pace: Pace
    misses: int = 0  # how often in a row nobody answered
    missed: int = 0  # requests up to this one were sent before the last miss
    down_until: float = -math.inf
    contact: float = -math.inf  # when it last answered, be it with an error

    def rest(self) -> None:
        """Forget what was in flight and that nobody answered; the pace that was found out stays."""
        self.misses, self.down_until = 0, -math.inf
        self.pace.rest()


def read_site(base_url: str, *, has_key: bool, pace: Pace) -> Site:
    """Return the site of a base URL. Raises ValueError when it names no host.

    With a key a name and password in the URL are left out: they would go into the same header.
    """
    from yarl import URL

    base = URL(base_url)
    if not base.host:
        raise ValueError(f"{base_url!r} names no host")
    url = base.joinpath("chat", "completions").with_query(base.query)
    if has_key:
        url = url.with_user(None)
    place = str(base.with_user(None).with_query(None)).rstrip("/")
    return Site(place=place, url=url, proxy=_proxy(url), pace=pace)


def open_session(sites: Sequence[Site], *, headers: Mapping[str, str]) -> aiohttp.ClientSession:
    """Return a session for these sites, which the caller closes; called inside a running loop."""
    import aiohttp

    ssl: Any = _certificates() if any(site.url.scheme == "https" for site in sites) else True
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=ssl),  # how many are in flight is the pace's business
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT),
        headers={"Content-Type": "application/json", "User-Agent": "fuseval", **headers},
    )


def _certificates() -> Any:
    """Return a context that trusts the machine's certificates, and certifi's where the machine has none."""
    import ssl

    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _proxy(url: URL) -> str | None:
    """Return the proxy that the environment names for this URL, None for none."""
    import urllib.request

    if url.host is None or urllib.request.proxy_bypass(url.host):
        return None
    return urllib.request.getproxies().get(url.scheme)
