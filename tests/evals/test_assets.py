"""Assets: only what has the pinned hash is ever used, whether cached, mirrored or downloaded."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import threading
from collections.abc import Iterator

import pytest

from evals.assets import Asset, AssetError, asset_table, fetch, find, is_right, state

CONTENT = b'{"question_id": 1}\n'
GIT_BLOB = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
NOWHERE = "http://127.0.0.1:9/question.jsonl"  # the discard port: nobody listens


def asset(url: str | None = None, *, content: bytes = CONTENT) -> Asset:
    digest = hashlib.sha256(content).hexdigest()
    return Asset("bench/question.jsonl", url, digest, None, len(content), "MIT", "example.org", "abc", "")


def put(folder: pathlib.Path, content: bytes = CONTENT, name: str = "bench/question.jsonl") -> pathlib.Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@contextlib.contextmanager
def web(content: bytes) -> Iterator[tuple[str, list[str]]]:
    """Serve the content at every path; yield its URL and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path.startswith("/file") else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/file.jsonl", asked
        finally:
            server.shutdown()
            thread.join()


def test_a_download_is_kept_and_not_repeated(tmp_path: pathlib.Path) -> None:
    with web(CONTENT) as (url, asked):
        first = fetch(asset(url), cache=tmp_path, mirror=None)
        again = fetch(asset(url), cache=tmp_path, mirror=None)
    assert first == again == tmp_path / "bench/question.jsonl"
    assert (first.read_bytes(), len(asked)) == (CONTENT, 1)
    assert list(first.parent.iterdir()) == [first]


def test_a_download_with_another_hash_is_refused_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    with web(b"<html>please log in</html>") as (url, _), pytest.raises(AssetError, match=r"not .* as pinned .*thrown"):
        fetch(asset(url), cache=tmp_path, mirror=None)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_mirrored_file_is_used_where_it_lies(tmp_path: pathlib.Path) -> None:
    mirrored = put(tmp_path / "mirror")
    assert fetch(asset(NOWHERE), cache=tmp_path / "cache", mirror=tmp_path / "mirror") == mirrored
    assert not (tmp_path / "cache").exists()


def test_a_mirrored_file_with_another_hash_is_refused(tmp_path: pathlib.Path) -> None:
    put(tmp_path, b"changed")
    with pytest.raises(AssetError, match=r"is not used: replace it in the mirror"):
        fetch(asset(NOWHERE), cache=tmp_path / "cache", mirror=tmp_path)


def test_a_corrupt_cached_file_is_downloaded_again(tmp_path: pathlib.Path) -> None:
    put(tmp_path, b"cut sho")
    with web(CONTENT) as (url, _):
        assert fetch(asset(url), cache=tmp_path, mirror=None).read_bytes() == CONTENT


def test_without_a_network_the_error_says_how_to_set_a_mirror(tmp_path: pathlib.Path) -> None:
    with pytest.raises(AssetError, match=r"bench/question\.jsonl and set FUSEVAL_ASSETS"):
        fetch(asset(NOWHERE), cache=tmp_path, mirror=None)


def test_a_missing_page_is_an_error_too(tmp_path: pathlib.Path) -> None:
    with web(CONTENT) as (url, _), pytest.raises(AssetError, match="404"):
        fetch(asset(url.replace("/file", "/gone")), cache=tmp_path, mirror=None)


def test_a_git_blob_id_pins_a_file_as_a_sha256_does(tmp_path: pathlib.Path) -> None:
    pinned = dataclasses.replace(asset(), sha256=None, git_blob_sha1=GIT_BLOB)
    assert is_right(pinned, put(tmp_path))
    assert not is_right(pinned, put(tmp_path, CONTENT + b"x"))


def test_a_file_without_a_pinned_hash_is_never_used(tmp_path: pathlib.Path) -> None:
    loose = dataclasses.replace(asset(NOWHERE), sha256=None)
    put(tmp_path)
    with pytest.raises(AssetError, match="no hash is pinned"):
        fetch(loose, cache=tmp_path / "cache", mirror=tmp_path)
    with pytest.raises(AssetError, match="cannot be downloaded"):
        fetch(loose, cache=tmp_path / "cache", mirror=None)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(AssetError, match=r"'mt_bench/questions\.jsonl'\. Did you mean 'mt_bench/question\.jsonl'\?"):
        find("mt_bench/questions.jsonl", cache=pathlib.Path("unused"), mirror=None)


def test_the_state_tells_where_a_file_stands(tmp_path: pathlib.Path) -> None:
    name, cache, mirror = "mt_bench/question.jsonl", tmp_path / "cache", tmp_path / "mirror"
    assert state(name, cache=cache, mirror=mirror) == "missing"
    put(cache, b"something else", name)
    assert state(name, cache=cache, mirror=mirror) == "corrupt"


def test_every_asset_has_a_licence_and_a_pinned_source_or_says_why_not() -> None:
    assert len({each.name for each in asset_table()}) == len(asset_table()) >= 33
    for each in asset_table():
        assert each.licence
        assert each.source
        assert (each.url and each.revision and each.revision in each.url) or each.note
        assert each.sha256 or each.git_blob_sha1 or each.note


def test_the_table_is_what_the_mirror_holds() -> None:
    if "FUSEVAL_ASSETS" not in os.environ:
        pytest.skip("set FUSEVAL_ASSETS to a folder with the assets under their names (`fuseval assets` lists them)")
    mirror = pathlib.Path(os.environ["FUSEVAL_ASSETS"])
    listed = {row["file"]: row for row in json.loads((mirror / "MANIFEST.json").read_text())}
    table = {each.name: each for each in asset_table()}
    assert {name: (row["sha256"], row["bytes"]) for name, row in listed.items()} == {
        name: (table[name].sha256, table[name].bytes) for name in listed
    }
    unused = mirror / "no-such-cache"
    assert {name: state(name, cache=unused, mirror=mirror) for name in listed} == dict.fromkeys(listed, "mirror")
    assert find("mt_bench/question.jsonl", cache=unused, mirror=mirror) == mirror / "mt_bench/question.jsonl"
