"""What explicit fusion is worth: a target taught what a source would say next, beside the same training without it.

    .venv/bin/python benchmarks/fusing.py TARGET_FOLDER SOURCE_FOLDER --data CONVERSATIONS.jsonl [MORE.jsonl ...]
        [--weights 1 0.9 0.5] [--seeds 3] [--held-out 0.25] [--limit N] [--set learning_rate=5e-5 epochs=1]

A quarter of the conversations is held out. λ = 1 is the control, plain fine-tuning; every λ and seed trains on the same
conversations, in the same order for equal seeds. Printed, for the base and each run: the held-out perplexity of what
the assistant says, the fused loss (cross-entropy to the fused targets, nats a token) and the training's tokens a
second; then the differences to the control, paired by conversation: their mean over all seeds with a 95 % interval from
a bootstrap over conversations, and each seed's own. On a GPU also the peak of the memory.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np


def main(given: argparse.Namespace) -> None:
    """Fuse, train every arm, measure, print."""
    from fusion.distill import DistillParams, distill
    from fusion.explicit import ExplicitParams
    from fusion.quiet import quiet_libraries

    params = replace(
        DistillParams(learning_rate=5e-5, epochs=1, batch_size=4, max_length=512, checkpoint_every=0),
        **{name: json.loads(value) for name, value in (pair.split("=", 1) for pair in given.set)},
    )
    with tempfile.TemporaryDirectory(dir=given.work) as scratch, quiet_libraries():
        work = Path(scratch)
        train, held = split(given.data, work, share=given.held_out, limit=given.limit)
        explicit = ExplicitParams(vocabulary=given.vocabulary)
        learnt = prepare(given, train, work / "cache", explicit)
        targets = prepare(given, held, work / "cache", explicit, tell=True)
        print(f"{params.epochs:g} epochs in batches of {params.batch_size} at {params.learning_rate:g}", flush=True)
        found: dict[tuple[float, int], np.ndarray] = {}
        base = evaluate(given.target, targets, params)
        show("base", base, None, 0.0)
        for seed in range(given.seeds):
            for weight in given.weights:
                begun = time.perf_counter()
                _reset_peak()
                folder = work / f"{weight}-{seed}"
                arm = replace(params, lm_weight=weight, seed=seed, dtype="float32")
                steps = distill(given.target, learnt, folder, arm)
                seconds = time.perf_counter() - begun
                found[weight, seed] = evaluate(folder, targets, params)
                shutil.rmtree(folder)
                show(f"λ={weight:g} seed {seed}", found[weight, seed], base, steps[-1].tokens / seconds)
        compare(found, given)


def split(files: list[Path], work: Path, *, share: float, limit: int | None) -> tuple[Path, Path]:
    """Write the conversations to learn and those held out, drawn by the hash of each."""
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    lines = sorted(set(lines), key=lambda line: hashlib.sha256(line.encode()).hexdigest())[:limit]
    count = round(len(lines) * share)
    parts = work / "train.jsonl", work / "held-out.jsonl"
    for part, rows in zip(parts, (lines[count:], lines[:count]), strict=True):
        part.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{len(lines) - count} conversations to learn, {count} held out", flush=True)
    return parts


def prepare(given: argparse.Namespace, data: Path, cache: Path, params, *, tell: bool = False):
    """Return the folder of the fused targets of ``data``."""
    from fusion.corpus import open_scene
    from fusion.explicit import _teacher
    from fusion.fuser import Fuser, fused_targets

    base, sources = {"target": given.target}, {"source": given.source}
    scene = open_scene(base, sources, data, vocabulary=params.vocabulary, cache=cache)
    teachers = [_teacher(reader, scene, params, cache, lambda _: None) for reader in scene.readers]
    fuser = Fuser(scene, teachers, how=params.how, level=params.level, k=params.k)
    found = fused_targets(fuser, cache, examples=0)
    if tell:
        print("models on the held-out conversations:")
        for model in found["models"]:
            print("  " + json.dumps({k: v for k, v in model.items() if isinstance(v, str | int | float)}))
    return fuser.folder(cache)


def evaluate(folder: Path, targets: Path, params) -> np.ndarray:
    """Return, of each held-out conversation, the sums of both losses in nats and the number of tokens: (n, 3)."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    from fusion.lessons import Collator, write_lessons
    from fusion.losses import clm_and_fusion_loss
    from fusion.target_shards import read_targets

    where = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(where).eval()
    opened = read_targets(targets)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        file = Path(scratch) / "lessons.arrow"
        vocabulary = model.config.get_text_config().vocab_size
        write_lessons(opened, file, k=opened.k, max_length=params.max_length, vocabulary=vocabulary)
        rows, collate = [], Collator(0, opened.k)
        for lesson in Dataset.from_file(str(file)):
            batch = {name: value.to(where) for name, value in collate([lesson]).items()}
            logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
            labels = batch["labels"][:, 1:]
            target = [batch[f"target_{name}"][:, :-1] for name in ("ids", "probs", "tail")]
            losses = clm_and_fusion_loss(logits, labels, *target, count=1)
            rows.append([*(loss.item() for loss in losses), (labels != -100).sum().item()])
    return np.array(rows)


def show(name: str, found: np.ndarray, base: np.ndarray | None, speed: float) -> None:
    """Print one line of a model."""
    clm, fusion, tokens = found.sum(0)
    text = f"  {name:<16} perplexity {math.exp(clm / tokens):8.4f}   fused loss {fusion / tokens:7.4f}"
    print(
        text + (f"   {speed:7.0f} tokens/s{_peak()}" if base is not None else f"   of {tokens:.0f} tokens"), flush=True
    )


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> str:
    import torch

    return f"   {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if torch.cuda.is_available() else ""


def compare(found: dict[tuple[float, int], np.ndarray], given: argparse.Namespace) -> None:
    """Print each λ beside the control, paired by conversation and seed."""
    draws = np.random.default_rng(0)
    for weight in given.weights[1:]:
        print(f"λ={weight:g} minus λ={given.weights[0]:g}, {given.seeds} seeds, paired by conversation:")
        for column, name in enumerate(("log perplexity", "fused loss")):
            pairs = [(found[weight, s], found[given.weights[0], s]) for s in range(given.seeds)]
            sums = np.mean([(ours - control)[:, column] for ours, control in pairs], axis=0)
            tokens = pairs[0][0][:, 2]
            at = draws.integers(0, len(sums), (10_000, len(sums)))
            low, high = np.quantile(sums[at].sum(1) / tokens[at].sum(1), [0.025, 0.975])
            each = [(ours - control)[:, column].sum() / tokens.sum() for ours, control in pairs]
            print(
                f"  {name:<15}{sums.sum() / tokens.sum():+.4f} [{low:+.4f}, {high:+.4f}]   seeds: "
                + " ".join(f"{value:+.4f}" for value in each)
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", type=float, nargs="+", default=[1.0, 0.9, 0.5], help="λ; the first is the control")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", type=float, default=0.25)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--vocabulary", default="first_piece")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="parameters of the training")
    parser.add_argument("--work", type=Path, help="where to keep scratch files")
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main(parser.parse_args())
