import numpy as np
import pytest

from evals.resampling import CHUNK, label_swaps, on_grid, percentile_intervals, resample_counts, resampled_means


def test_every_resample_draws_as_many_questions_as_there_are():
    counts = np.concatenate(list(resample_counts(30, rounds=500)))
    assert counts.shape == (500, 30)
    assert (counts.sum(axis=1) == 30).all()
    assert counts.var(axis=0).mean() == pytest.approx(29 / 30, abs=0.1)  # of a multinomial


@pytest.mark.parametrize("draw", [resample_counts, label_swaps])
def test_more_rounds_begin_with_the_same_draws(draw):
    [few], [many] = draw(13, rounds=21, seed=3), draw(13, rounds=50, seed=3)
    assert (many[:21] == few).all()


@pytest.mark.parametrize("draw", [resample_counts, label_swaps])
def test_draws_come_in_parts_that_fit_in_memory(draw):
    parts = list(draw(CHUNK // 4, rounds=6))
    assert [part.shape for part in parts] == [(4, CHUNK // 4), (2, CHUNK // 4)]


def test_labels_are_swapped_every_other_time():
    swaps = np.concatenate(list(label_swaps(9, rounds=2000)))
    assert swaps.shape == (2000, 9)
    assert swaps.mean(axis=0) == pytest.approx(np.full(9, 0.5), abs=0.05)


def test_sums_on_the_grid_are_the_same_in_any_order():
    rng = np.random.default_rng(0)
    row = on_grid(rng.normal(size=(1, 805)) * 100)[0]
    sums = {float(np.cumsum(rng.permutation(row))[-1]) for _ in range(20)}
    assert len(sums) == 1


def test_the_grid_moves_no_value_by_more_than_it_says():
    rows = np.random.default_rng(0).normal(size=(3, 805)) * [[1e-9], [1.0], [1e9]]
    moved = np.abs(on_grid(rows) - rows).max(axis=1) / np.abs(rows).max(axis=1)
    assert (moved < 805 * 2.0**-52).all()
    assert (on_grid(np.array([[0.0, 0.0]])) == 0).all()


def test_a_resample_without_any_weight_does_not_count():
    means = resampled_means(np.array([[5.0, 0.0, 0.0]]), np.array([[1.0, 0.0, 0.0]]), rounds=200)
    assert 0 < np.isnan(means).sum() < 200
    assert percentile_intervals(means).tolist() == [[5.0, 5.0]]
