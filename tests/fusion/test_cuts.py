from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from fusion.blocks import Group
from fusion.cuts import Cut, Ladder, count, cuts, top

BLOCK = 1 << 16  # where blocks end on a CPU
SAMPLED = 1 << 18  # above so many elements thresholds are first guessed from a sample

CASES: dict[str, Callable[[int], Tensor]] = {
    "distinct": lambda size: torch.randperm(size).float() + 1,
    "normal": lambda size: torch.randn(size).abs(),
    "all equal": lambda size: torch.full((size,), 0.5),
    "all zero": torch.zeros,
    "three values": lambda size: torch.randint(0, 3, (size,)).float(),
    "half zero": lambda size: torch.rand(size) * torch.randint(0, 2, (size,)),
    "nearly all zero": lambda size: torch.where(torch.rand(size) < 1e-4, torch.rand(size) + 0.1, torch.zeros(size)),
    "ascending": lambda size: torch.arange(size).float(),
    "descending": lambda size: torch.arange(size).flip(0).float(),
    "ascending with ties": lambda size: torch.arange(size).float().div(7).floor(),
    "one huge": lambda size: torch.rand(size).index_fill(0, torch.tensor([size // 2]), 1e30),
    "steps of bfloat16": lambda size: (torch.randn(size).bfloat16() - torch.randn(size).bfloat16()).abs().float(),
    "smallest floats": lambda size: torch.randint(0, 3, (size,)).float() * 1e-45,
    "largest floats": lambda size: torch.randint(1, 3, (size,)).float() * 1.5e38,
    "a few millionths": lambda size: 1 + torch.randint(0, 4, (size,)).float() * 2**-23,
}
WITH_ZEROS = ["all zero", "three values", "half zero", "nearly all zero", "steps of bfloat16", "smallest floats"]


def of(values: Tensor) -> Group:
    """A group whose delta is the values."""
    return Group(torch.zeros(values.numel()), [values])


def largest(values: Tensor, k: int) -> np.ndarray:
    """The flat indices of the k largest, of equal ones the lowest, by a stable sort of all."""
    return np.sort(np.argsort(-values.numpy(), kind="stable")[:k])


def taken(group: Group, cut: Cut) -> np.ndarray:
    ladder, level = Ladder([cut], "magnitude"), torch.zeros(group.numel, dtype=torch.uint8)
    for place, base, tuned in group.stretches():
        assert ladder.grade(base, tuned, level[place], np.zeros((2, 1)))
    return level.nonzero().squeeze(1).numpy()


def compare(values: Tensor, *shares: float, of_nonzero: bool) -> None:
    """Hold the elements that top and cuts take against those of a stable sort."""
    shares = shares or (1e-9, 0.1, 0.5, 1.0)
    whole = int(values.count_nonzero()) if of_nonzero else values.numel()
    order = np.argsort(-values.numpy(), kind="stable")
    group = of(values)
    largest_share, wanted = top(group, "magnitude", shares, of_nonzero=of_nonzero)
    by_cut = cuts(group, "magnitude", shares, of_nonzero=of_nonzero)
    assert np.array_equal(largest_share.numpy(), np.sort(order[: max(wanted)]))
    for k, share in enumerate(shares):
        expected = np.sort(order[: count(share, whole)])
        assert wanted[k] == len(expected), share
        assert np.array_equal(top(group, "magnitude", [share], of_nonzero=of_nonzero)[0].numpy(), expected), share
        assert np.array_equal(taken(group, by_cut[k]), expected), share


def unsampled(size: int) -> Tensor:
    """Which elements the sample of a group of that size surely passes over."""
    seen = Group(torch.zeros(size), [torch.arange(size).float()]).sample().tuned[0].long()
    return torch.ones(size, dtype=torch.bool).index_fill(0, seen, False)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, BLOCK + 1, SAMPLED + 1])
@pytest.mark.parametrize("case", CASES)
def test_the_largest_are_those_of_a_stable_sort(case: str, size: int):
    compare(CASES[case](size), of_nonzero=False)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, SAMPLED + 1])
@pytest.mark.parametrize("case", WITH_ZEROS)
def test_a_share_may_be_of_the_values_that_are_not_0(case: str, size: int):
    compare(CASES[case](size), of_nonzero=True)


@pytest.mark.slow
@pytest.mark.parametrize("of_nonzero", [False, True])
@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, SAMPLED, SAMPLED + 1, 9 * BLOCK])
@pytest.mark.parametrize("case", CASES)
def test_the_largest_are_those_of_a_stable_sort_whatever_the_share(case: str, size: int, of_nonzero: bool):
    compare(CASES[case](size), 1e-9, 1e-4, 0.003, 0.1, 0.29, 1 / 3, 0.5, 2 / 3, 0.9, 0.999, 1.0, of_nonzero=of_nonzero)


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, SAMPLED + 1])
def test_every_count_is_met_where_few_values_are_many(size: int):
    values = CASES["three values"](size)
    twos, ones = int((values == 2).sum()), int((values == 1).sum())
    group = of(values)
    for k in (1, twos - 1, twos, twos + 1, twos + ones, twos + ones + 1, size - 1, size):
        [cut] = cuts(group, "magnitude", [k / size])
        assert np.array_equal(taken(group, cut), largest(values, k)), k


@pytest.mark.parametrize("size", [1000, SAMPLED + 1])
def test_each_source_has_thresholds_of_its_own(size: int):
    sources, shares = [torch.randn(size), torch.randint(0, 5, (size,)).float()], [[0.1, 0.7], [0.4]]
    group = Group(torch.zeros(size), sources)
    for k, source in enumerate(sources):
        for share, cut in zip(shares[k], cuts(group.only(k), "magnitude", shares[k]), strict=True):
            assert np.array_equal(taken(group.only(k), cut), largest(source.abs(), count(share, size)))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.9])
@pytest.mark.parametrize("seen", ["small", "large", "zero"])
def test_a_misleading_sample_costs_another_pass_and_no_exactness(share: float, seen: str):
    size = SAMPLED + 5000
    hidden = unsampled(size)
    shown = {"small": torch.rand(size) + 0.1, "large": torch.rand(size) + 9, "zero": torch.zeros(size)}[seen]
    values = torch.where(hidden, torch.rand(size) + 5, shown)
    for of_nonzero in (False, True):
        k = count(share, int(values.count_nonzero()) if of_nonzero else size)
        expected = largest(values, k)
        assert np.array_equal(top(of(values), "magnitude", [share], of_nonzero=of_nonzero)[0].numpy(), expected)
        [cut] = cuts(of(values), "magnitude", [share], of_nonzero=of_nonzero)
        assert np.array_equal(taken(of(values), cut), expected)


def test_a_fair_sample_costs_no_other_pass():
    class Counted(Group):
        passes = 0

        def stretches(self) -> Iterator[tuple[slice, Tensor, list[Tensor]]]:
            self.passes += 1
            return super().stretches()

    for case, values in CASES.items():
        group = Counted(torch.zeros(SAMPLED + 1), [values(SAMPLED + 1)])
        cuts(group, "magnitude", [0.01, 0.3, 0.8])
        assert group.passes == 1, case


def test_ties_are_counted_across_blocks():
    values = torch.ones(3 * BLOCK)
    assert taken(of(values), Cut(1.0, BLOCK + 5)).tolist() == list(range(BLOCK + 5))
    assert taken(of(values), Cut(1.0)).size == 0


def graded(ladder: Ladder, values: Tensor) -> list[int]:
    level = torch.empty(values.numel(), dtype=ladder.dtype)
    assert ladder.grade(torch.zeros_like(values), [values], level, np.zeros((1 + len(ladder.needed), 1)))
    return level.tolist()


def test_of_several_cuts_each_takes_its_own():
    cuts_of_one = [Cut(2.0, 2), None, Cut(2.0, 1), Cut(1.0), Cut(4.0)]
    ladder, found = Ladder(cuts_of_one, "magnitude"), []
    for values in (torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0, 2.0, 0.0])):
        found += graded(ladder, values)
    taken_by = [[level >= need for level in found] for need in ladder.needed]
    assert [sum(each) for each in taken_by] == [3, 6, 2, 4, 0]
    assert taken_by[2] == [True, False, True, False, False, False]


def test_more_cuts_than_a_byte_counts_each_take_their_own():
    values = torch.arange(300).float()
    ladder = Ladder([Cut(float(x)) for x in range(299, -1, -1)], "magnitude")
    level = graded(ladder, values)
    assert level == list(range(300))
    assert [sum(each >= need for each in level) for need in ladder.needed] == list(range(300))


@pytest.mark.parametrize(
    ("share", "numel", "k"), [(0.29, 100, 29), (0.57, 100, 57), (0.1, 9, 0), (1.0, 5, 5), (0.5, 0, 0), (1 / 3, 3, 1)]
)
def test_a_share_that_is_a_whole_number_in_decimals_stays_one(share: float, numel: int, k: int):
    assert count(share, numel) == k


def test_where_most_values_are_zero_only_as_many_are_gathered_as_are_wanted():
    values = torch.zeros(4 * SAMPLED)
    values[::50] = 1.0
    index, [wanted] = top(of(values), "magnitude", [0.1])
    assert (index.numel(), wanted) == (count(0.1, values.numel()), count(0.1, values.numel()))
    assert np.array_equal(index.numpy(), largest(values, wanted))
