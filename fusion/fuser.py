"""One conversation, as all models said it, fused into what the target is to learn of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion.align import Alignment, align
from fusion.alignment_report import Cost, Said, report
from fusion.chats import Chat
from fusion.corpus import Scene, as_read
from fusion.parquet_shards import key_of
from fusion.pieces import Encoded
from fusion.project import project
from fusion.target_shards import TargetRow, write_targets
from fusion.targets import fuse, position_nll, supervised_nll, supervised_positions
from fusion.teachers import Teacher
from fusion.token_maps import exact_map

RULES = 1
"""Raised when the same teachers, by the same parameters, give other targets."""

Seen = tuple[Encoded, Sequence[Encoded], Sequence[Alignment], Said]


class Fuser:
    """Projects what each teacher said on the target's tokens, and fuses it; the target itself is the first teacher.

    The base's own distributions take part, as they do in FuseLLM and FuseChat. ``how``, ``level``: see
    :func:`fusion.targets.fuse`; ``k`` tokens are kept, None: as many as the teachers kept.
    """

    def __init__(self, scene: Scene, teachers: Sequence[Teacher], *, how: str, level: str, k: int | None) -> None:
        self.scene, self.teachers = scene, teachers
        self.k = k or max(teacher.k for teacher in teachers)
        self._maps = (exact_map(scene.target.pieces, scene.target.pieces), *scene.maps)
        self._how, self._level = how, level

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the targets of a chat."""
        said = [
            {name: value for name, value in teacher.manifest.settings.items() if name != "kind"}
            for teacher in self.teachers
        ]
        corpus = [chat.id for chat in self.scene.chats] if self.scene.vocabulary == "statistics" else None
        return {
            "models": said,
            "how": self._how,
            "level": self._level,
            "vocabulary": self.scene.vocabulary,
            "alignment": self.scene.alignment,
            "counted_in": corpus and key_of(corpus),
            "rules": RULES,
        }

    def folder(self, cache: Path) -> Path:
        """Return where the targets are kept."""
        return cache / "targets" / key_of(self.settings, self.k)[:16]

    def fuse(self, chat: Chat) -> tuple[TargetRow, Seen]:
        """Return one chat's targets, and what a survey of the alignment wants to know."""
        tokens = self.scene.target.read(chat)
        rows = [teacher.row(chat.id) for teacher in self.teachers]
        theirs = [as_read(row.ids, row.ends) for row in rows]
        alignments = [align(tokens, theirs[0]), *self.scene.align(tokens, theirs[1:])]
        parts = [
            project(row, tokens, alignment, token_map, k=self.k)
            for row, alignment, token_map in zip(rows, alignments, self._maps, strict=True)
        ]
        if self._level == "sequence":
            nll = np.array([supervised_nll(row, chat.supervised) for row in rows])
        else:
            nll = np.stack([position_nll(part) for part in parts])
        fused = fuse(parts, nll, how=self._how, level=self._level)  # type: ignore[arg-type]
        row = TargetRow(chat.id, tokens.ids, supervised_positions(tokens.ends, chat.supervised), fused)
        return row, (tokens, theirs[1:], alignments[1:], Said(rows, parts, nll))


def fused_targets(
    fuser: Fuser, cache: Path, *, examples: int, on_chat: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Write the targets of all chats to ``fuser.folder(cache)``, as far as they are not there; return the report.

    ``examples`` of each kind of position are shown in it. See :func:`fusion.alignment_report.report`.
    """
    scene, folder = fuser.scene, fuser.folder(cache)
    chats = {chat.id: chat for chat in scene.chats}
    survey, heard = scene.survey(examples=examples), 0

    def make(chat: str) -> TargetRow:
        nonlocal heard
        heard += 1
        row, seen = fuser.fuse(chats[chat])
        survey.add(chats[chat], *seen)
        return row

    ids = [chat.id for chat in scene.chats]
    write_targets(folder, ids, make, k=fuser.k, settings=fuser.settings, on_chat=on_chat)
    names = [reader.name for reader in scene.readers]
    file = cache / "reports" / f"{key_of(folder.name, names, ids, examples)[:16]}.json"
    if heard < len(chats) and file.is_file():
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return known
    if heard < len(chats):  # an earlier run fused some of them: count them all, in order
        survey = scene.survey(examples=examples)
        for chat in chats.values():
            survey.add(chat, *fuser.fuse(chat)[1])
    costs = {
        reader.name: Cost(parameters=reader.parameters, bytes=teacher.manifest.bytes)
        for reader, teacher in zip(scene.readers, fuser.teachers, strict=True)
    }
    found = report(survey, costs)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, file)
    return found
