"""Preferences as a folder in the Hub's dataset layout, which ``datasets.load_dataset`` reads, and so does training.

    README.md            the dataset card: its configurations, and the report
    sft.parquet          messages
    preference.parquet   prompt, chosen, rejected: messages each, trl's conversational form
    wrpo.parquet         the same of the target's own (y_wt, y_l), and source: the sources' best (y_ws)
    manifest.json        the SHA-256 of each Parquet file, and the report; see fusion.parquet_shards

What was kept comes back from it as it was; a file is there only where it has rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusion.checkpoints import whole_folder
from fusion.conversations import Conversation
from fusion.errors import RecipeError
from fusion.parquet_shards import FORMAT, Shard, read_manifest, read_shard
from fusion.preference_records import Built, Example, Pair, Prompt, Quadruple, Response
from fusion.preference_report import as_markdown, report

_KIND = "preferences"
_PARTS = {"sft": ("best",), "preference": ("chosen", "rejected"), "wrpo": ("chosen", "rejected", "source")}
_ROWS = 1000  # in a row group


@dataclass(frozen=True, slots=True)
class PreferenceData:
    """What was kept, as ``Built`` has it; ``report`` is that of ``fusion.preference_report``."""

    sft: tuple[Example, ...]
    pairs: tuple[Pair, ...]
    quadruples: tuple[Quadruple, ...]
    report: Mapping[str, Any]

    @property
    def conversations(self) -> list[Conversation]:
        """Return what SFT learns: each prompt with its best response."""
        return [_conversation(example) for example in self.sft]


def write_dataset(built: Built, folder: Path, *, title: str = "Preference data") -> None:
    """Write a folder that ``datasets.load_dataset(folder, "preference")`` reads; it has its name when it is whole.

    Its configurations, "sft", "preference" and "wrpo", are those with examples; the last of them is the default. Beside
    the messages, columns say of which id, kind and set a prompt is, and of each response from which source (``…_by``),
    which sample, how rewarded and whether correct. RecipeError where nothing was kept, CheckpointError where the folder
    exists.
    """
    rows = {
        "sft": [_example_row(example) for example in built.sft],
        "preference": [_row(p.prompt, p.gap, chosen=p.chosen, rejected=p.rejected) for p in built.pairs],
        "wrpo": [
            _row(q.prompt, q.gap, chosen=q.target_best, rejected=q.rejected, source=q.source_best)
            for q in built.quadruples
        ],
    }
    configs = [name for name in _PARTS if rows[name]]
    if not configs:
        raise RecipeError(f"none of the {len(built.prompts)} prompts was kept; the report says why")
    told = report(built)
    with whole_folder(folder) as work:
        shards = [_write(work, number, name, rows[name]) for number, name in enumerate(configs)]
        settings = {"format": FORMAT, "kind": _KIND}
        manifest = {"settings": settings, "shards": [asdict(shard) for shard in shards], "told": told}
        (work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        (work / "README.md").write_text(_card(configs, told, title), encoding="utf-8")


def read_dataset(folder: Path) -> PreferenceData:
    """Read what ``write_dataset`` wrote.

    FusionError where the folder is not there or a file is not what was written, RecipeError where it holds other data.
    """
    manifest = read_manifest(folder)
    if manifest.settings.get("kind") != _KIND:
        raise RecipeError(f"{folder} holds no preferences but other shards; check the path")
    rows = {shard.key: read_shard(folder, shard).to_pylist() for shard in manifest.shards}
    return PreferenceData(
        tuple(_example(row) for row in rows.get("sft", ())),
        tuple(_pair(row) for row in rows.get("preference", ())),
        tuple(_quadruple(row) for row in rows.get("wrpo", ())),
        manifest.told,
    )


def _write(folder: Path, number: int, name: str, rows: Sequence[Mapping[str, Any]]) -> Shard:
    """Write one configuration, and return what the manifest says of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(name)
    file = folder / f"{name}.parquet"
    # Parquet, for readers of JSON lines guess the types: a column of dates would not stay text.
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, len(rows), _ROWS):
            writer.write_table(pa.Table.from_pylist(list(rows[start : start + _ROWS]), schema=schema))
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return Shard(number, file.name, name, digest, file.stat().st_size, {"rows": len(rows)})


def _schema(name: str) -> Any:
    import pyarrow as pa

    text = pa.string()
    messages = pa.list_(pa.struct([("role", text), ("content", text)]))
    shown = ["messages"] if name == "sft" else ["prompt", *_PARTS[name]]
    columns = [("id", text), ("kind", text), ("set", text), *((column, messages) for column in shown)]
    for part in _PARTS[name]:
        columns += [(f"{part}_by", text), (f"{part}_sample", pa.int64())]
        columns += [(f"{part}_reward", pa.float64()), (f"{part}_correct", pa.bool_())]
    return pa.schema(columns + ([] if name == "sft" else [("gap", pa.float64())]))


def _example_row(example: Example) -> dict[str, Any]:
    return {**_asked(example.prompt), "messages": _conversation(example), **_scored("best", example.best)}


def _row(prompt: Prompt, gap: float, **said: Response) -> dict[str, Any]:
    row = {**_asked(prompt), "prompt": _messages(prompt.messages), "gap": gap}
    for part, response in said.items():
        row |= {part: _said(response), **_scored(part, response)}
    return row


def _asked(prompt: Prompt) -> dict[str, str]:
    return {"id": prompt.id, "kind": prompt.kind, "set": prompt.set}


def _scored(part: str, response: Response) -> dict[str, Any]:
    correct = None if response.correct is None else bool(response.correct)
    return {
        f"{part}_by": response.source,
        f"{part}_sample": response.sample,
        f"{part}_reward": response.reward,
        f"{part}_correct": correct,
    }


def _conversation(example: Example) -> list[dict[str, str]]:
    return [*_messages(example.prompt.messages), *_said(example.best)]


def _messages(messages: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _said(response: Response) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": response.text}]


def _example(row: Mapping[str, Any]) -> Example:
    *asked, said = row["messages"]
    return Example(_prompt(row, asked), _response({**row, "best": [said]}, "best"))


def _pair(row: Mapping[str, Any]) -> Pair:
    return Pair(_prompt(row, row["prompt"]), _response(row, "chosen"), _response(row, "rejected"), row["gap"])


def _quadruple(row: Mapping[str, Any]) -> Quadruple:
    best, chosen, rejected = (_response(row, part) for part in ("source", "chosen", "rejected"))
    return Quadruple(_prompt(row, row["prompt"]), best, chosen, rejected, row["gap"])


def _prompt(row: Mapping[str, Any], messages: Sequence[Mapping[str, str]]) -> Prompt:
    return Prompt(row["id"], messages, row["kind"], row["set"])


def _response(row: Mapping[str, Any], part: str) -> Response:
    [said] = row[part]
    by, sample, reward, correct = (row[f"{part}_{what}"] for what in ("by", "sample", "reward", "correct"))
    return Response(row["id"], by, sample, said["content"], reward, correct)


def _card(configs: Sequence[str], told: Mapping[str, Any], title: str) -> str:
    """Return the dataset card; its YAML holds no text of anyone's."""
    lines = ["---", "tags: [preference, dpo, model-fusion, fuseval]", "configs:"]
    for name in configs:
        lines += [f"- config_name: {name}", *(["  default: true"] if name == configs[-1] else [])]
        lines += ["  data_files:", "  - split: train", f"    path: {name}.parquet"]
    return "\n".join([*lines, "---", "", as_markdown(told, of=title)])
