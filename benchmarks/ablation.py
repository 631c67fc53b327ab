"""What a candidate costs: merged straight into a live engine, beside the usual way with a checkpoint and a new engine.

    .venv/bin/python benchmarks/ablation.py BASE_FOLDER SOURCE_FOLDER [MORE ...] [--candidates 12] [--questions 12]
        [--max-tokens 32] [--usual 12]

Both ways merge the same recipes (SCE, TIES and task arithmetic in turn, with one value of a parameter after the other),
ask the same questions of the starter set at temperature 0, and must give the same answers. The usual way is a process
for each candidate, as shell scripts do it: write the checkpoint, start an engine, answer, stop. Printed: wall seconds
of both, what a candidate costs in memory beyond its own answering, and the time in memory after 4, 8, … candidates,
which grows linearly; and CPU seconds of both, which a busy machine changes less.
`fuseval demo` leaves a base (in the cache) and sources (fuseval-demo/checkpoints).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main(given: argparse.Namespace) -> None:
    """Measure both ways and print them side by side."""
    numbers = list(range(given.candidates))
    begun = time.perf_counter()
    in_memory, marks, beyond = streamed(given, numbers)
    seconds, cpu = time.perf_counter() - begun, time.process_time()
    print(f"in memory   {seconds:7.1f} s for {len(numbers)} candidates, engine start included")
    print(
        f"            {statistics.median(beyond):7.2f} s a candidate beyond its answering ({max(beyond):.2f} at most)"
    )
    for count in sorted({4, 8, len(numbers)}):
        if count <= len(numbers):
            print(
                f"            {marks[count - 1]:7.1f} s after {count} candidates, {marks[count - 1] / count:.2f} each"
            )
    usual = numbers[: given.usual]
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        written = [by_a_process(given, number, Path(scratch) / f"{number}") for number in usual]
    spent = time.perf_counter() - begun
    whole = spent / len(usual) * len(numbers)
    scaled = "" if len(usual) == len(numbers) else f" ({len(usual)} measured, {spent:.1f} s)"
    print(f"usual way   {whole:7.1f} s for {len(numbers)} candidates{scaled}, {spent / len(usual):.2f} each")
    print(f"            {whole / seconds:7.1f} x as long as in memory")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    each = (used.ru_utime + used.ru_stime) / len(usual)
    mine = cpu / len(numbers)
    print(f"CPU         {mine:7.1f} s a candidate in memory, {each:.1f} the usual way: {each / mine:.1f} x")
    same = sum(a == b for a, b in zip(in_memory, written, strict=False))
    print(f"answers     {same} of {len(usual)} candidates answered the same, token for token")


def streamed(given: argparse.Namespace, numbers: list[int]) -> tuple[list[list[str]], list[float], list[float]]:
    """Return all answers, when each candidate was done since the engine stood, and each one's cost beyond answering."""
    from fusion.ahead import in_stretches

    model = engine(given.models[0])
    answers, marks, beyond = [], [], []
    first = time.perf_counter()
    for number in numbers:
        begun = time.perf_counter()
        model.stream(in_stretches(merged(given, number)), like=given.models[0], identity=f"candidate {number}")
        beyond.append(time.perf_counter() - begun)
        answers.append(answer(given, model))
        marks.append(time.perf_counter() - first)
    model.close()
    return answers, marks, beyond


def by_a_process(given: argparse.Namespace, number: int, folder: Path) -> list[str]:
    """Return the answers of one candidate that a process of its own wrote, loaded and asked."""
    options = ["--max-tokens", str(given.max_tokens), "--questions", str(given.questions)]
    command = [sys.executable, __file__, *map(str, given.models), *options, "--one", str(number), str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [str(text) for text in json.loads(done.stdout.splitlines()[-1])]


def one(given: argparse.Namespace) -> None:
    """Do one candidate the usual way, and print its answers as JSON."""
    from fusion.publish import merge_to_folder

    number, folder = int(given.one[0]), Path(given.one[1])
    sources = {path.name: path.name for path in given.models[1:]}  # hashing them is no part of the usual way
    provenance = {"base": {given.models[0].name: "base"}, "sources": sources}
    merge_to_folder(recipe(given, number), folder, title=folder.name, provenance=provenance)
    model = engine(folder)
    print(json.dumps(answer(given, model)))
    model.close()


def merged(given: argparse.Namespace, number: int):
    """Return the tensors of one candidate."""
    from fusion.merge import merge

    return merge(recipe(given, number))


def recipe(given: argparse.Namespace, number: int):
    """Return one candidate's recipe."""
    from fusion.recipe import MergeRecipe

    value = (number // 3 + 1) / (given.candidates // 3 + 1)
    ways = (("sce", {"select_topk": value}), ("ties", {"density": value}), ("task_arithmetic", {"scale": value}))
    method, params = ways[number % 3]
    return MergeRecipe(method, given.models[0], tuple(given.models[1:]), params)


def engine(folder: Path):
    """Return a running engine."""
    from evals.engine import EngineSettings
    from evals.local import LocalModel

    return LocalModel(folder, identity="base", settings=EngineSettings(max_model_len=1024, kv_cache_gib=0.5))


def answer(given: argparse.Namespace, model) -> list[str]:
    """Return the model's answers to the questions."""
    from evals.chat import ChatRequest
    from evals.records import Message, Sampling
    from evals.starter import questions

    checked = [q for q in questions() if q.check is not None][: given.questions]
    sampling = Sampling(max_tokens=given.max_tokens)
    found = dict(model.chat([ChatRequest((Message("user", q.turns[0]),), sampling) for q in checked]))
    return [found[n].text for n in range(len(checked))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--usual", type=int, default=12, help="how many of them also go the usual way")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if len(parsed.models) < 2:
        parser.error("give a base and at least one source")
    one(parsed) if parsed.one else main(parsed)
