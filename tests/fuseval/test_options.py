from __future__ import annotations

import pytest
import typer

from fuseval.options import read_size


@pytest.mark.parametrize(("text", "size"), [("5GB", 5e9), ("2 GiB", 2 << 30), ("0.5mb", 500_000), ("12B", 12)])
def test_a_size_is_read_as_it_is_written(text: str, size: float):
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["5", "GB", "-1GB", "0MB", "5GBs", ""])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(typer.BadParameter, match="write it as 5GB"):
        read_size(text)
