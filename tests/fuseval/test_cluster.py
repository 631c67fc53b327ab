"""Joining a Ray cluster: what is said where there is none, or no Ray."""

import sys
from pathlib import Path

import pytest

from fuseval.cluster import joined
from fuseval.config import ConfigError


def test_without_ray_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'fuseval\[scale\]'"), joined("local"):
        pass


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:1", "none answers at 127.0.0.1:1 .*`ray start --head`"), ("ray://127.0.0.1:1", "`ray job submit`")],
)
def test_a_cluster_that_is_not_there_is_said_at_once(address, said):
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=said), joined(address):
        pass


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_workers_run_the_code_that_the_driver_runs_whatever_lies_around(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    (tmp_path / "evals.py").write_text("raise AssertionError('not ours')")
    monkeypatch.chdir(tmp_path)

    def code() -> tuple[str, str]:
        import evals.records

        return evals.records.__file__, Path(evals.records.__file__).read_text()

    with joined("local", cpus=1) as ray:
        with joined("auto") as same:  # the one that there is, which stays
            assert same is ray
        there, here = ray.get(ray.remote(code).remote()), code()
    assert not ray.is_initialized()
    assert there[1] == here[1]
    assert there[0] != here[0]
