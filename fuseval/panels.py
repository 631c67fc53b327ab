"""Panels of an experiment: several judges as one, known to the ledger as a model whose recipe names them."""

from __future__ import annotations

from collections.abc import Mapping

from evals.records import Model
from fuseval.experiment import PanelSpec


def panel_model(spec: PanelSpec, judges: Mapping[str, str]) -> Model:
    """Return the model that stands for a panel; ``judges`` are the identities of the experiment's judges by name."""
    raise NotImplementedError
