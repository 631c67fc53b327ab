"""Panels of an experiment: several judges as one, known to the ledger as a model whose recipe names them."""

from __future__ import annotations

from collections.abc import Mapping

from evals.records import Model
from fuseval.experiment import PanelSpec
from judges import panel


def panel_model(spec: PanelSpec, judges: Mapping[str, str]) -> Model:
    """Return the model that stands for a panel; ``judges`` are the identities of the experiment's judges by name.

    Raises PanelError where its parts do not fit together.
    """
    categories = {c: [names] if isinstance(names, str) else names for c, names in spec.categories.items()}
    made = panel.make_panel(
        spec.name,
        [judges[name] for name in spec.judges],
        how=spec.how,
        weights={judges[name]: weight for name, weight in spec.weights.items()},
        categories={c: [judges[name] for name in names] for c, names in categories.items()},
        quorum=spec.quorum,
    )
    return panel.panel_model(made)
