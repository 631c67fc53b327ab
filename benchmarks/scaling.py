"""A model of what a study costs over Ray, checked: fitted on two small settings, it predicts three others.

    python benchmarks/scaling.py FOLDER [--max-tokens 24] [--batch 8] [--json FILE]

What the file holds of an earlier run is not measured again.

A setting is (questions, candidates, replicas). Work in CPU seconds of the process tree:

    work = replicas · start + candidates · (replicas · swap + questions · question)

with three constants of machine, model and lengths: an engine's start, putting a candidate's weights into one engine,
and one question's answer. ``question`` and ``swap`` are solved for from two settings with one replica, ``start`` is
measured there. Dollars are work (or, with GPUs that are rented whole, replicas times wall) times the price.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from replicas import cpu_seconds, requests

FIT = ((12, 1, 1), (24, 3, 1))
CHECK = ((24, 2, 2), (48, 1, 2), (12, 4, 2))


def measured(folder: Path, setting: tuple[int, int, int], *, max_tokens: int, batch: int) -> dict[str, float]:
    """Run one setting, and return the CPU seconds of starting and of all that comes after, and the wall seconds."""
    from evals.engine import EngineSettings
    from evals.ray_replicas import RayCrew, Spread
    from evals.replicas import Replicas
    from fuseval.cluster import joined

    questions, candidates, replicas = setting
    settings = EngineSettings(max_model_len=512, kv_cache_gib=0.5, max_num_seqs=batch)
    with joined("local", cpus=replicas) as ray:
        used, began = cpu_seconds(), time.perf_counter()
        crew = RayCrew(ray, settings, Spread(replicas=replicas, address="local"))
        model = Replicas(folder, identity="first", count=replicas, crew=crew)
        while len(model.processes) < replicas:
            list(model.chat(requests(1, 1)))
        started, ready = cpu_seconds(), time.perf_counter()
        for number in range(candidates):
            model.load(folder, identity=f"candidate {number}")
            assert len(list(model.chat(requests(questions, max_tokens)))) == questions
        ended, end = cpu_seconds(), time.perf_counter()
        model.close()
    return {"start": started - used, "rest": ended - started, "ready": ready - began, "wall": end - ready}


def main() -> None:
    """Fit, predict, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    found: dict[str, Any] = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    for setting in (*FIT, *CHECK):
        if str(setting) not in found:
            found[str(setting)] = measured(given.folder, setting, max_tokens=given.max_tokens, batch=given.batch)
        if given.json:
            given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(setting, {name: round(value, 1) for name, value in found[str(setting)].items()}, flush=True)
    (q1, c1, _), (q2, c2, _) = FIT
    one, two = (found[str(setting)] for setting in FIT)
    question = (two["rest"] / c2 - one["rest"] / c1) / (q2 - q1)
    swap = one["rest"] / c1 - q1 * question
    start = (one["start"] + two["start"]) / 2
    print(f"start {start:.1f}, swap {swap:.2f}, question {question:.3f} CPU s")
    for questions, candidates, replicas in CHECK:
        told = found[str((questions, candidates, replicas))]
        predicted = replicas * start + candidates * (replicas * swap + questions * question)
        work = told["start"] + told["rest"]
        print(f"{(questions, candidates, replicas)}: predicted {predicted:.1f}, measured {work:.1f} CPU s, "
              f"{predicted / work - 1:+.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
