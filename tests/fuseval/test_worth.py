"""What models are worth by a study's objective."""

from evals.composite import worth
from evals.records import LOWER_IS_BETTER, Score
from fuseval.worth import Weigher
from results.queries import leaderboard
from results.store import Ledger
from tests.fuseval.planted import ablation_yaml, done


def test_a_score_of_which_less_is_better_counts_against_whoever_has_more(tmp_path):
    with Ledger.open(tmp_path / "ledger.duckdb") as ledger:
        plan = done(ablation_yaml(tmp_path, space={"params.scale": [0.5]}), ledger).plan
        objective = plan.file.ablation.objective[0]
        more = Weigher(plan).parts(objective, [plan.base], plan.search)
        row = next(r for r in leaderboard(ledger) if r.metric == "accuracy" and r.model == plan.base.id)
        place = (row.model, row.benchmark, row.version, row.judge, None, row.metric)
        ledger.add(Score(*place, row.value, row.low, row.high, row.n, row.missing, (LOWER_IS_BETTER,)))
        less = Weigher(plan).parts(objective, [plan.base], plan.search)
    assert [part.weight for part in (*more, *less)] == [1.0, -1.0]
    assert worth(less, plan.base.id).value == -row.value
