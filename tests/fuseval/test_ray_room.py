"""Room for engines on a local Ray cluster, which is begun with the first of them."""

import os

import pytest

from evals.engine import EngineSettings
from evals.ray_replicas import Spread
from fuseval.engines import Engines
from results.store import Ledger


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_cluster_begun_for_few_engines_is_begun_anew_for_more(tmp_path):
    ray = pytest.importorskip("ray", reason="needs Ray: pip install --no-deps -r requirements/ray.txt")
    with Ledger.open(tmp_path / "ledger.duckdb") as ledger:
        engines = Engines(EngineSettings(), lambda *_: None, os.environ, ledger)
        assert engines._crew(EngineSettings(), Spread(1, "local")).has_room(1)
        assert ray.cluster_resources()["CPU"] == 1
        assert engines._crew(EngineSettings(), Spread(2, "local", cpus=2)).has_room(2)
        engines.close()
    assert not ray.is_initialized()
