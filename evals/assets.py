"""Upstream files (questions, prompts, references, published results): where each comes from, and a checked copy.

Nothing of this is shipped: a file is taken from the cache, from a mirror folder that has the same relative names,
or from its source at a pinned revision, and only if its hash is the pinned one.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
import pathlib
import tempfile
from dataclasses import dataclass


class AssetError(Exception):
    """A file cannot be had, or is not what it should be; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One upstream file; ``name`` is its relative path in cache and mirror.

    ``url`` is None where the file is derived or not a plain download (``note`` says how to get it). ``bytes`` is
    None where the size is not known. A file is pinned by ``sha256`` or, failing that, by ``git_blob_sha1``.
    """

    name: str
    url: str | None
    sha256: str | None
    git_blob_sha1: str | None
    bytes: int | None
    licence: str
    source: str
    revision: str | None
    note: str = ""


@functools.cache
def asset_table() -> tuple[Asset, ...]:
    """Return every known asset, in the order of ``assets.json``."""
    rows = json.loads(pathlib.Path(__file__).with_name("assets.json").read_text(encoding="utf-8"))
    return tuple(Asset(**row) for row in rows)


def find(name: str, *, cache: pathlib.Path, mirror: pathlib.Path | None) -> pathlib.Path:
    """Return the path of a checked copy of the asset: cached, mirrored, or downloaded into the cache."""
    return fetch(_named(name), cache=cache, mirror=mirror)


def state(name: str, *, cache: pathlib.Path, mirror: pathlib.Path | None) -> str:
    """Return "cached", "mirror", "corrupt" (there, but with another hash) or "missing"; downloads nothing."""
    asset = _named(name)
    places = [("cached", cache / asset.name)] + ([("mirror", mirror / asset.name)] if mirror else [])
    present = [(word, is_right(asset, path)) for word, path in places if path.is_file()]
    return next((word for word, right in present if right), "corrupt" if present else "missing")


def fetch(asset: Asset, *, cache: pathlib.Path, mirror: pathlib.Path | None) -> pathlib.Path:
    """Do as :func:`find` does, for an asset that need not stand in the table."""
    cached = cache / asset.name
    if cached.is_file() and is_right(asset, cached):
        return cached
    if mirror is not None and (mirrored := mirror / asset.name).is_file():
        if is_right(asset, mirrored):
            return mirrored
        raise AssetError(
            f"{mirrored} is not {asset.name} as pinned ({_hashes(asset, mirrored)}) and is not used: replace it in "
            f"the mirror, or unset FUSEVAL_ASSETS to download it"
        )
    if asset.url is None or (asset.sha256 is None and asset.git_blob_sha1 is None):
        raise AssetError(
            f"{asset.name} cannot be downloaded by itself ({asset.note or 'no URL'}): see {asset.source}"
            + (f", {_advice(asset)}" if asset.sha256 or asset.git_blob_sha1 else "")
        )
    return _download(asset, cached)


def is_right(asset: Asset, path: pathlib.Path) -> bool:
    """Tell whether the file has the pinned hash; without a pinned hash nothing is right."""
    if asset.sha256 is not None:
        return _sha256(path) == asset.sha256
    return asset.git_blob_sha1 is not None and _git_blob_sha1(path) == asset.git_blob_sha1


def _named(name: str) -> Asset:
    by_name = {asset.name: asset for asset in asset_table()}
    if name in by_name:
        return by_name[name]
    close = difflib.get_close_matches(name, by_name, n=1, cutoff=0.4)
    hint = f"Did you mean {close[0]!r}?" if close else "`fuseval assets` lists them."
    raise AssetError(f"there is no asset {name!r}. {hint}")


def _download(asset: Asset, target: pathlib.Path) -> pathlib.Path:
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, checked before it gets its name: a killed download is never taken for the file.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
        try:
            downloader = pooch.HTTPDownloader(timeout=30, chunk_size=1 << 16)
            part = pathlib.Path(pooch.retrieve(asset.url, None, fname=target.name, path=folder, downloader=downloader))
        except (requests.RequestException, OSError) as error:
            raise AssetError(f"cannot download {asset.name} from {asset.url} ({error}): {_advice(asset)}") from error
        if not is_right(asset, part):
            raise AssetError(
                f"what {asset.url} gave is not {asset.name} as pinned ({_hashes(asset, part)}) and was thrown away: "
                f"look for a proxy that rewrites downloads, or {_advice(asset)}"
            )
        os.replace(part, target)
    return target


def _advice(asset: Asset) -> str:
    return f"put a copy at <folder>/{asset.name} and set FUSEVAL_ASSETS to that folder, or try again with a network"


def _hashes(asset: Asset, path: pathlib.Path) -> str:
    if asset.sha256 is not None:
        return f"sha256 {_sha256(path)[:12]}… of {path.stat().st_size} bytes, pinned {asset.sha256[:12]}…"
    if asset.git_blob_sha1 is not None:
        return f"git blob {_git_blob_sha1(path)[:12]}…, pinned {asset.git_blob_sha1[:12]}…"
    return "no hash is pinned for it yet"


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_blob_sha1(path: pathlib.Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
