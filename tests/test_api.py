"""The Python API: open, attach, and what they give."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

import fastdump
import targets
from fastdump._native import Gap
from fastdump.errors import (
    CorruptDump,
    FaultError,
    IncompleteWarning,
    SourceGone,
    UsageError,
)
from fastdump.source import Chunk, Zeros
from test_formats import run_well
from test_real import child


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[targets.Target]:
    with targets.start("awkward", tmp_path_factory.mktemp("awkward")) as found:
        found.stop()
        yield found


@pytest.fixture(scope="module")
def core(target: targets.Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_well(target.pid, "core", tmp_path_factory.mktemp("dumps")).path


def test_attach_reads_what_the_target_knows(target: targets.Target) -> None:
    with fastdump.attach(target.pid) as source:
        assert source.format == "process"
        assert source.name == str(target.pid)
        checked = 0
        for region in target.truth["regions"]:
            for start, end, kind, seed in region["content"]:
                expected = targets.expected(start, end, kind, seed)
                if expected is not None and source.regions:
                    assert source.read(start, end - start) == expected, (region["name"], kind)
                    checked += 1
        assert checked > 20


def test_walk_gives_each_byte_once(target: targets.Target, core: Path) -> None:
    for source in (fastdump.attach(target.pid), fastdump.open(core)):
        with source:
            for region in source.regions:
                at = region.start
                for part in source.walk([(region.start, region.end)]):
                    start = part.address if isinstance(part, Chunk) else part.start
                    assert start == at
                    at = part.end
                assert at == region.end


def test_a_gap_raises_with_its_address_and_reason(core: Path) -> None:
    with fastdump.open(core) as source:
        gap = next(part for part in source.walk() if isinstance(part, Gap))
        with pytest.raises(FaultError) as caught:
            source.read(gap.start, 16)
        assert caught.value.address == gap.start
        assert gap.reason in str(caught.value)
        with pytest.raises(FaultError):
            source.read_into(0, bytearray(16))
        with pytest.raises(FaultError):
            source.read(source.regions[-1].end, 1)


def test_what_could_not_be_searched_is_warned_of(core: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.core"
    cut.write_bytes(core.read_bytes()[: core.stat().st_size // 2])
    with pytest.warns(IncompleteWarning, match="could not be read: .*cut off"):
        list(fastdump.strings(cut, min_length=100))
    for patterns in (["no such text"], ["regex:no such text"]):
        with pytest.warns(IncompleteWarning, match="could not be read: .*cut off"):
            list(fastdump.search(cut, patterns))


def test_a_view_of_a_core_is_the_file_itself(core: Path) -> None:
    with fastdump.open(core) as source:
        chunk = next(part for part in source.walk() if isinstance(part, Chunk))
        start, expected = chunk.address, bytes(chunk.data)
        view = source.view(start, start + len(expected))
        words = source.to_numpy(start, start + 4096, "<u8")
    assert view.readonly
    assert type(view.obj).__name__ == "mmap"
    assert view == expected
    assert words.tobytes() == expected[:4096]  # valid although the source is closed
    assert words.dtype == numpy.dtype("<u8")


def test_read_into_fills_what_there_is(target: targets.Target) -> None:
    with fastdump.attach(target.pid) as source:
        starts = {region.start for region in source.regions}
        last = next(r for r in source.regions if r.path == "[heap]" and r.end not in starts)
        buffer = bytearray(8192)
        assert source.read_into(last.end - 4096, buffer) == 4096
        assert buffer[:4096] == source.read(last.end - 4096, 4096)


def test_strings_of_an_open_source(target: targets.Target, core: Path) -> None:
    with fastdump.attach(target.pid) as live, fastdump.open(core) as dead:
        ours = [(m.address, m.text) for m in live.strings(min_length=6)]
        assert ours == [(m.address, m.text) for m in dead.strings(min_length=6)]
        assert ours
        assert sum(len(batch) for batch in dead.batches(min_length=6)) == len(ours)
        assert dead.info()["process"]["pid"] == target.pid


def test_zeros_are_known_without_reading(target: targets.Target) -> None:
    with fastdump.attach(target.pid) as source:
        absent = [
            (start, end)
            for region in target.truth["regions"]
            for start, end, kind, _ in region["content"]
            if kind == "absent"
        ]
        assert absent
        for start, end in absent:
            parts = list(source.walk([(start, end)]))
            assert all(isinstance(part, Zeros) for part in parts), parts


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        fastdump.open(tmp_path / "nothing")
    with pytest.raises(UsageError):
        fastdump.open("/etc/passwd")
    (tmp_path / "bad").write_bytes(b"\x7fELF\2\1\1" + bytes(9) + b"\4\0" + bytes(10))
    with pytest.raises(CorruptDump):
        fastdump.open(tmp_path / "bad")
    with pytest.raises(SourceGone):
        fastdump.attach(4194305)


def test_a_target_that_is_gone_is_said() -> None:
    with (
        child(sys.executable, "-c", "input(print('ready', flush=True))", ready=b"ready") as process,
        fastdump.attach(process.pid) as source,
    ):
        start = source.regions[0].start
        assert source.read(start, 16)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(SourceGone):
            source.read(start, 16)
