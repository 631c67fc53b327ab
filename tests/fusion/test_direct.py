from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusion.direct import ALIGNED, DirectFile

STAGE = 1 << 22  # bytes that are written at once


@pytest.mark.parametrize("size", [0, 1, ALIGNED, STAGE - 1, STAGE, STAGE + 1, 2 * STAGE + 5])
def test_a_file_holds_what_was_written_at_its_place(tmp_path: Path, size: int):
    data = os.urandom(size)
    file = DirectFile(tmp_path / "file", start=ALIGNED)
    for first in range(0, size, 3_000_001):
        file.write(memoryview(data)[first : first + 3_000_001])
    file.close(head=b"head")
    written = (tmp_path / "file").read_bytes()
    assert written[:4] == b"head"
    assert written[ALIGNED:] == data


def test_a_file_system_without_direct_writes_gets_the_same_bytes(tmp_path: Path):
    class Buffered(DirectFile):
        def _past_cache(self, direct: bool) -> bool:
            return super()._past_cache(False)

    data = os.urandom(STAGE + 7)
    file = Buffered(tmp_path / "file")
    file.write(memoryview(data))
    file.close()
    assert (tmp_path / "file").read_bytes() == data


def test_what_the_disk_refuses_to_take_directly_goes_through_the_cache(tmp_path: Path):
    data = os.urandom(2 * STAGE)
    file = DirectFile(tmp_path / "file")
    file._place = 100  # where no direct write can begin
    file.write(memoryview(data))
    file.close()
    assert (tmp_path / "file").read_bytes()[100:] == data


def test_a_full_disk_is_an_error():
    file = DirectFile(Path("/dev/full"))
    file.write(memoryview(bytes(STAGE)))  # on its way while the next is prepared
    with pytest.raises(OSError, match="No space left"):
        file.write(memoryview(bytes(STAGE)))
    file.abandon()
