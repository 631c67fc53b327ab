"""Merging beside mergekit 0.1.5, in turn, on the same cores and checkpoints: time, memory and bytes as Markdown.

.venv/bin/python benchmarks/merge.py [--scale tiny|135m|1.1b] [--jobs linear sce ...] [--repeat N] [--cores 1 2]

The models are synthetic: a Llama-shaped base and three variants, which differ by noise of 0.5, 1 and 2 % of each
tensor's deviation. They are made once, below --data (1.1b: 9 GB, and room for what is merged), as is an environment
for mergekit, by pip. Both tools are given the same recipes, mergekit's YAML; the grid is ours alone, beside eight
times mergekit's one merge. "floor" reads all the inputs and writes one model's worth of bytes, without any
arithmetic. A merge of ours that hashes its inputs for the first time is shown as "sce, unhashed".
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import yaml
from platformdirs import user_cache_path

MERGEKIT = ("mergekit==0.1.5", "immutables")  # all else that it needs is ours too
VARIANTS = {"half": 0.005, "one": 0.01, "two": 0.02}  # noise, as a share of the tensor's standard deviation
GRID = [0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0]
WEIGHTED: dict[str, object] = {"weight": 0.2, "density": 0.6}
JOBS: dict[str, tuple[dict[str, object], dict[str, object]]] = {  # of the merge, of each of its sources
    "linear": ({"merge_method": "linear"}, {"weight": 1.0}),
    "sce": ({"merge_method": "sce", "base_model": "base", "parameters": {"select_topk": 0.1}}, {}),
    "ties": ({"merge_method": "ties", "base_model": "base"}, WEIGHTED),
    "dare_ties": ({"merge_method": "dare_ties", "base_model": "base"}, WEIGHTED),
}
OURS_ALONE = ("sce, unhashed", "grid")
START = "start-up"


SIZES = {  # vocabulary, hidden, feed-forward, layers, heads, key-value heads; input and output embeddings tied; files
    "tiny": ((256, 64, 128, 2, 4, 2), False, 1),
    "135m": ((49152, 576, 1536, 30, 9, 3), True, 1),
    "1.1b": ((32000, 2048, 8192, 16, 32, 8), False, 5),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process took."""

    wall: float  # seconds
    cpu: float  # seconds, user and system, all threads
    rss: float  # peak, MB; mapped files count
    anon: float  # peak, MB; mapped files do not
    read: float  # GB asked for by read calls; mapped files do not count
    written: float  # GB


def main() -> None:
    """Build what is lacking, run the jobs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SIZES, default="1.1b")
    every = [*JOBS, *OURS_ALONE, START]
    parser.add_argument("--jobs", nargs="+", choices=every, default=every)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--cores", type=int, nargs="+", default=[1])
    parser.add_argument("--data", type=Path, default=user_cache_path("fuseval") / "benchmarks" / "merge")
    parser.add_argument("--without-mergekit", action="store_true")
    parser.add_argument("--without-ours", action="store_true")
    parser.add_argument("--floor", type=Path, nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.floor:
        floor(chosen.floor[0], chosen.floor[1:])
        return
    tools = ["floor"] + ["ours"] * (not chosen.without_ours) + ["mergekit"] * (not chosen.without_mergekit)
    bench = Bench(chosen.data.resolve(), chosen.scale)
    bench.prepare(tools)
    taken: dict[tuple[int, str, str], list[Cost | None]] = {}
    for turn in range(chosen.repeat):
        for cores in chosen.cores:
            for job in chosen.jobs:
                for tool in tools if turn % 2 == 0 else tools[::-1]:
                    if job in {"mergekit": OURS_ALONE, "floor": chosen.jobs[1:]}.get(tool, ()):
                        continue
                    cost = bench.run(job, tool, cores)
                    taken.setdefault((cores, "floor" if tool == "floor" else job, tool), []).append(cost)
                    print(f"# {cores} core(s), {job}, {tool}: {cost}", file=sys.stderr, flush=True)
    print("\n".join(table(taken)))


class Bench:
    """A data folder: the models of one scale, mergekit's environment, our cache, and one output at a time."""

    def __init__(self, data: Path, scale: str) -> None:
        self.data, self.scale = data, scale
        self.mergekit = data / "mergekit-0.1.5"
        self.cache = data / "cache"

    def prepare(self, tools: list[str]) -> None:
        """Make what is lacking, and run each tool once, so that its bytecode is compiled."""
        for scale in {"tiny", self.scale}:
            make_models(self.data / scale, scale)
        if "mergekit" in tools and not self.mergekit.exists():
            install(self.mergekit)
        for tool in tools:
            self.run(START, tool, 1)
        self.run("sce", "floor", 1)  # has the pages of inputs and output in memory once
        if "ours" in tools:
            self.run("sce", "ours", 1)  # hashes the inputs

    def run(self, job: str, tool: str, cores: int) -> Cost | None:
        """Run one job in a process of its own and remove what it wrote; None if it failed."""
        folder = self.data / ("tiny" if job == START else self.scale)
        recipe, output = self.data / "recipe.yaml", self.data / "output"
        shutil.rmtree(output, ignore_errors=True)
        recipe.write_text(yaml.safe_dump(written(job, folder)))
        environ = {
            **os.environ,
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(cores)),
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(self.mergekit if tool == "mergekit" else Path(__file__).parents[1]),
            "FUSEVAL_CACHE": str(self.cache / "none" if job == "sce, unhashed" else self.cache),
        }
        command = {
            "floor": [__file__, "--floor", output, *(folder / name for name in ("base", *VARIANTS))],
            "ours": ["-m", "fuseval", "merge", recipe, "-o", output],
            "mergekit": ["-m", "mergekit.scripts.run_yaml", recipe, output, "--quiet"],
        }[tool]
        try:
            return measure([sys.executable, *map(str, command)], environ, cores, self.data / "log")
        finally:
            shutil.rmtree(output, ignore_errors=True)
            shutil.rmtree(self.cache / "none", ignore_errors=True)
            os.sync()  # no run pays for what the one before it wrote


def written(job: str, folder: Path) -> dict[str, object]:
    """Return a job's recipe: mergekit's YAML, or for a grid ours."""
    if job == "grid":
        sources = [str(folder / name) for name in VARIANTS]
        return {
            "method": "sce_mergekit",
            "base": str(folder / "base"),
            "sources": sources,
            "grid": {"select_topk": GRID},
        }
    whole, each = JOBS[{START: "linear", "sce, unhashed": "sce"}.get(job, job)]
    models = [{"model": str(folder / name), **({"parameters": each} if each else {})} for name in VARIANTS]
    base = {"base_model": str(folder / "base")} if "base_model" in whole else {}
    return {**whole, **base, "models": models, "dtype": "bfloat16"}


def measure(command: list[str], environ: dict[str, str], cores: int, log: Path) -> Cost | None:
    """Run a command on the last ``cores`` cores and look at it every 20 ms; None, and its last words, if it failed."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cores)[-cores:])  # the child inherits it
    try:
        with log.open("w") as file:
            begun = time.perf_counter()
            child = subprocess.Popen(command, env=environ, stdout=file, stderr=subprocess.STDOUT)
    finally:
        os.sched_setaffinity(0, all_cores)
    rss = anon = 0
    status, io = Path(f"/proc/{child.pid}/status"), Path(f"/proc/{child.pid}/io")
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        seen = fields(status)
        rss, anon = max(rss, seen.get("VmHWM", 0)), max(anon, seen.get("RssAnon", 0))
        time.sleep(0.02)
    wall, moved = time.perf_counter() - begun, fields(io)
    _, code, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(code)
    if code:
        print(f"# failed: {' '.join(command)}\n{log.read_text()[-1500:]}", file=sys.stderr, flush=True)
        return None
    cpu = used.ru_utime + used.ru_stime
    return Cost(wall, cpu, rss * 1024 / 1e6, anon * 1024 / 1e6, moved["rchar"] / 1e9, moved["wchar"] / 1e9)


def fields(file: Path) -> dict[str, int]:
    """Return the numbers of a file of /proc; none if the process has gone."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def floor(output: Path, folders: list[Path]) -> None:
    """Read every file of the folders, and write the first's."""
    buffer = memoryview(bytearray(1 << 16))  # a larger one leaves the processor's cache
    output.mkdir()
    for folder in folders:
        for path in folder.iterdir():
            into = output / path.name if folder == folders[0] else Path(os.devnull)
            with path.open("rb", buffering=0) as file, into.open("wb", buffering=0) as copy:
                while size := file.readinto(buffer):
                    copy.write(buffer[:size])


def table(taken: dict[tuple[int, str, str], list[Cost | None]]) -> Iterator[str]:
    """Yield the Markdown lines: medians, and how many times mergekit's time or the floor's that is.

    With several numbers of cores, also how many times as fast it is as with the fewest.
    """
    costs = {key: typical(several) for key, several in taken.items()}
    heads = "cores|job|tool|wall s|CPU s|peak RSS MB|anon MB|read GB|written GB|CPU/mergekit|wall/mergekit|wall/floor"
    heads += "|speed-up over the fewest cores"
    yield f"|{heads}|"
    yield "|---" * (heads.count("|") + 1) + "|"
    for (cores, job, tool), cost in costs.items():
        if cost is None:
            yield f"| {cores} | {job} | {tool} | failed |" + " |" * 9
            continue
        times = len(GRID) if job == "grid" else 1
        theirs = costs.get((cores, "sce" if job in OURS_ALONE else job, "mergekit"))
        least = costs.get((cores, "floor", "floor"))
        alone = costs.get((min(cores for cores, _, _ in costs), job, tool))
        ratios = (
            f"{cost.cpu / (theirs.cpu * times):.3f}" if theirs else "",
            f"{cost.wall / (theirs.wall * times):.3f}" if theirs else "",
            f"{cost.wall / least.wall:.1f}" if least and job != START else "",
            f"{alone.wall / cost.wall:.2f}" if alone and alone is not cost else "",
        )
        figures = (f"{cost.wall:.2f}", f"{cost.cpu:.2f}", f"{cost.rss:.0f}", f"{cost.anon:.0f}")
        moved = (f"{cost.read:.2f}", f"{cost.written:.2f}")
        yield "| " + " | ".join((str(cores), job, tool, *figures, *moved, *ratios)) + " |"


def typical(several: list[Cost | None]) -> Cost | None:
    """Return the medians of several runs; None if one failed."""
    rows = [astuple(cost) for cost in several if cost]
    return Cost(*map(statistics.median, zip(*rows, strict=True))) if len(rows) == len(several) else None


def install(folder: Path) -> None:
    """Put mergekit into a folder of its own, for PYTHONPATH."""
    half = folder.with_suffix(".partial")
    shutil.rmtree(half, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(half), *MERGEKIT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"pip could not install {' '.join(MERGEKIT)}; use --without-mergekit\n{done.stderr[-1500:]}")
    half.rename(folder)


def make_models(folder: Path, scale: str) -> None:
    """Write base and variants, unless they are there."""
    if folder.exists():
        return
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes, tied, files = SIZES[scale]
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    heads = ("num_attention_heads", "num_key_value_heads")
    config = LlamaConfig(**dict(zip(names + heads, sizes, strict=True)), tie_word_embeddings=tied, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).named_parameters()}
    half = folder.with_name(folder.name + ".partial")
    shutil.rmtree(half, ignore_errors=True)
    batches: list[list[str]] = [[] for _ in range(files)]
    total, so_far = sum(shape.numel() for shape in shapes.values()), 0
    for name, shape in shapes.items():
        batches[so_far * files // total].append(name)
        so_far += shape.numel()
    index: dict[str, dict[str, Any]] = {"metadata": {"total_size": 2 * total}, "weight_map": {}}
    for number, batch in enumerate(batches, 1):
        index["weight_map"] |= dict.fromkeys(batch, f"model-{number:05}-of-{files:05}.safetensors")
    words = {f"w{number}": number for number in range(config.vocab_size)}
    for model in ("base", *VARIANTS):
        config.save_pretrained(half / model)
        Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(half / model / "tokenizer.json"))
        (half / model / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        (half / model / "model.safetensors.index.json").write_text(json.dumps(index))
    draw = torch.Generator().manual_seed(0)
    for batch in batches:
        file = index["weight_map"][batch[0]]
        base = {name: torch.randn(shapes[name], generator=draw) * 0.02 + (len(shapes[name]) == 1) for name in batch}
        save_file({name: tensor.bfloat16() for name, tensor in base.items()}, half / "base" / file, {"format": "pt"})
        for variant, share in VARIANTS.items():
            tuned = {n: x + torch.randn(x.shape, generator=draw) * share * x.std() for n, x in base.items()}
            save_file({n: x.bfloat16() for n, x in tuned.items()}, half / variant / file, {"format": "pt"})
    half.rename(folder)


if __name__ == "__main__":
    main()
