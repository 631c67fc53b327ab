"""What several engines over Ray cost beside one: CPU seconds of answering (engine start apart), and the same words?

    python benchmarks/replicas.py FOLDER --questions 64 --max-tokens 48 --batch 16 [--kill] [--json FILE]

One engine answers first, in this process; then one replica and two over a local Ray cluster, each with one thread and
the same number of requests in a batch. CPU seconds are those of the whole process tree (Ray's own processes too),
from the first request to the last reply; ratios are of one run. ``--kill`` ends a replica by SIGKILL in mid-run, once
more.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from evals.chat import ChatRequest, Reply
from evals.engine import EngineSettings
from evals.records import Message, Sampling

TOPICS = (
    "rivers",
    "bread",
    "clocks",
    "winter",
    "bridges",
    "salt",
    "maps",
    "horses",
    "paper",
    "the moon",
    "iron",
    "tea",
)
FORMS = (
    "Explain in a few sentences",
    "Write a short story about",
    "List five facts about",
    "Ask a child a question about",
)


def requests(count: int, max_tokens: int) -> list[ChatRequest]:
    """Return different chats, decoded greedily."""
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
    texts = [f"{FORMS[n % len(FORMS)]} {TOPICS[n // len(FORMS) % len(TOPICS)]} ({n})." for n in range(count)]
    return [ChatRequest((Message("user", text),), sampling) for text in texts]


def cpu_seconds() -> float:
    """Return what this process and all below it have used."""
    used = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        used += times.user + times.system
    return used


def answered(model: Any, asked: list[ChatRequest], *, kill: int | None = None) -> tuple[dict[int, Reply], float, float]:
    """Return the replies, the CPU seconds and the wall seconds; ``kill`` is a process to end when a third is there."""
    replies: dict[int, Reply] = {}
    began, used = time.perf_counter(), cpu_seconds()
    for index, reply in model.chat(asked):
        assert isinstance(reply, Reply), reply
        assert index not in replies, f"{index} came twice"
        replies[index] = reply
        if kill and len(replies) == len(asked) // 3:
            os.kill(kill, signal.SIGKILL)
            kill = None
    return replies, cpu_seconds() - used, time.perf_counter() - began


def over_ray(folder: Path, settings: EngineSettings, replicas: int, asked: list[ChatRequest]) -> Iterator[Any]:
    """Yield the replicas once all have started."""
    from evals.ray_replicas import RayCrew, Spread
    from evals.replicas import Replicas
    from fuseval.cluster import joined

    spread = Spread(replicas=replicas, address="local")
    with joined("local", cpus=replicas) as ray:
        model = Replicas(
            folder, identity="m", count=replicas, crew=RayCrew(ray, settings, spread),
            hear=lambda done, total, note: print(f"  {done}/{total} {note}", flush=True),
        )  # fmt: skip
        while len(model.processes) < replicas:
            list(model.chat(asked[:1]))
        yield model
        model.close()


def told(name: str, found: tuple[dict[int, Reply], float, float], like: dict[int, Reply] | None) -> dict[str, Any]:
    """Print and return one line of the table."""
    replies, cpu, wall = found
    tokens = sum(r.output_tokens for r in replies.values())
    lost = "killed" in name  # and what that one had used is not seen any more
    same = None if like is None else sum(replies[n].text == like[n].text for n in like)
    line = {
        "what": name,
        "cpu": None if lost else cpu,
        "wall": wall,
        "tokens": tokens,
        "replies": len(replies),
        "same": same,
    }
    used = "?" if lost else f"{cpu:.1f}"
    print(f"{name}: {used} CPU s, {wall:.1f} s, {tokens} tokens, {len(replies)} replies, {same} as one engine's")
    return line


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    settings = EngineSettings(max_model_len=512, kv_cache_gib=0.5, max_num_seqs=given.batch)
    asked = requests(given.questions, given.max_tokens)
    from evals.local import LocalModel

    one = LocalModel(given.folder, identity="m", settings=settings)
    list(one.chat(asked[:1]))
    found = answered(one, asked)
    like = found[0]
    lines = [told("one engine", found, None)]
    one.close()
    for replicas in (1, 2):
        for model in over_ray(given.folder, settings, replicas, asked):
            lines.append(told(f"{replicas} over Ray", answered(model, asked), like))
            if given.kill and replicas == 2:
                victim = model.processes[1]
                lines.append(told("2, one killed", answered(model, asked, kill=victim), like))
    print(f"2 replicas beside one engine: {lines[2]['cpu'] / lines[0]['cpu']:.2f} x the CPU seconds")
    if given.json:
        given.json.write_text(json.dumps(lines, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
