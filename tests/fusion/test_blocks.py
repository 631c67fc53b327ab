from __future__ import annotations

import itertools
import math

import pytest
import torch

from fusion.blocks import Group, NotFinite, same

BLOCK = 1 << 16  # where blocks end on a CPU


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("numel", [0, 1, BLOCK, 2 * BLOCK + 3])
def test_blocks_hold_the_base_and_the_differences_in_order(dtype: torch.dtype, numel: int):
    base, source = torch.randn(numel).to(dtype), torch.randn(numel).half()
    group = Group(base, [source])
    starts, deltas = [torch.empty(0)], [torch.empty(0)]
    for place, start, [difference] in group.blocks():
        starts.append(start.clone())
        deltas.append(difference.clone())
        group.put(place, start.add_(difference))  # blocks may be overwritten
    assert torch.cat(starts).equal(base.float())
    assert torch.cat(deltas).equal(source.float() - base.float())
    assert group.result().equal((base.float() + (source.float() - base.float())).to(dtype))


@pytest.mark.parametrize("row", [1, 3, 1000, BLOCK, BLOCK + 1])
def test_blocks_hold_whole_rows(row: int):
    places = [place for place, _, _ in Group(torch.zeros(150 * row), [torch.zeros(150 * row)], row=row).blocks()][:20]
    assert all(place.start % row == 0 and place.stop % row == 0 for place in places)
    assert all(before.stop == after.start for before, after in itertools.pairwise(places))


def test_a_part_of_a_group_has_the_elements_of_its_index():
    base, source = torch.zeros(2, 3), torch.arange(6.0).view(2, 3)
    [(_, _, [difference])] = Group(base, [source]).at(torch.tensor([1, 4])).blocks()
    assert difference.tolist() == [1.0, 4.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("where", [None, 0, 1])
def test_a_nan_or_infinity_is_found_where_it_is(where: int | None, place: int, bad: float):
    models = [torch.zeros(BLOCK + 2, dtype=torch.bfloat16) for _ in range(3)]
    models[0 if where is None else where + 1][place] = bad
    with pytest.raises(NotFinite, match="the base" if where is None else f"source {where + 1}") as error:
        list(Group(models[0], models[1:]).blocks())
    assert error.value.source == where


def test_a_source_alone_keeps_its_number_in_errors():
    good, bad = torch.zeros(3), torch.tensor([0.0, math.nan, 0.0])
    with pytest.raises(NotFinite) as error:
        Group(good, [good, bad]).only(1).check(slice(0, 3))
    assert error.value.source == 1


def test_infinities_of_both_signs_do_not_hide_each_other():
    with pytest.raises(NotFinite):
        list(Group(torch.zeros(2), [torch.tensor([math.inf, -math.inf])]).blocks())


def test_numbers_whose_sum_overflows_are_no_infinities():
    assert len(list(Group(torch.full((4,), 3e38), [torch.full((4,), 3e38)]).blocks())) == 1


def test_a_group_is_unchanged_where_no_number_differs():
    base = torch.tensor([0.0, 1.0], dtype=torch.bfloat16)
    assert Group(base, [base.clone(), base.float(), torch.tensor([-0.0, 1.0]).half()]).unchanged()
    assert not Group(base, [base, torch.tensor([0.0, 1.001])]).unchanged()


def test_a_difference_in_the_last_element_is_one():
    one = torch.zeros(BLOCK + 1)
    assert same(one, one.clone())
    assert not same(one, one.index_fill(0, torch.tensor([BLOCK]), 1.0))
    assert not same(torch.tensor([math.nan]), torch.tensor([math.nan]))
