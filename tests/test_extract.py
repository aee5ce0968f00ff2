"""``fastdump extract`` and ``info``: a dump goes from format to format and stays the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastdump
import targets
from fastdump._native import Gap
from fastdump.dumped import Dumped
from fastdump.extract import extract
from fastdump.frames import Frames
from fastdump.raw_source import PackedFile
from fastdump.source import Chunk, Zeros
from fastdump.sources import open_source
from fastdump.storage import Lost, Storage
from test_formats import FORMATS_WITH_OUTPUT, run_well

SUFFIX = {"core": ".core", "lz4": ".core.lz4", "raw": ".raw", "raw-lz4": ".raw-lz4"}


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[targets.Target]:
    with targets.start("awkward", tmp_path_factory.mktemp("awkward")) as target:
        target.stop()
        yield target


@pytest.fixture(scope="module")
def dumps(awkward: targets.Target, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dumps")
    return {name: run_well(awkward.pid, name, folder).path for name in FORMATS_WITH_OUTPUT}


def cli(*words: Any, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    result = subprocess.run(
        [sys.executable, "-m", "fastdump", *map(str, words)], capture_output=True, timeout=300
    )
    assert result.returncode == code, result.stderr.decode()
    assert b"Traceback" not in result.stderr
    return result


def memory_of(path: Path) -> list[tuple[Any, ...]]:
    """All that a dump tells: regions, labels, gaps, and what it holds of each region."""
    found: list[tuple[Any, ...]] = []
    with fastdump.open(path) as source:
        found += zip(source.regions, source.labels, strict=True)
        at, held = 0, bytearray()
        for part in source.walk():
            if isinstance(part, Chunk):
                if at + len(held) != part.address:
                    found.append((at, bytes(held)))
                    at, held = part.address, bytearray()
                held += part.data
            elif isinstance(part, Gap):
                found.append(tuple(part))
            else:
                assert isinstance(part, Zeros)
                found.append(tuple(part))
        found.append((at, bytes(held)))
    return found


def without_zeros(memory: list[tuple[Any, ...]]) -> dict[int, bytes]:
    """Pages that are not zero, by address."""
    pages = {}
    for item in memory:
        if len(item) == 2 and isinstance(item[1], bytes):
            for at in range(0, len(item[1]) // 4096 * 4096, 4096):  # a cut leaves part of one
                page = item[1][at : at + 4096]
                if page.strip(b"\0"):
                    pages[item[0] + at] = page
    return pages


def gaps_of(memory: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [item for item in memory if len(item) == 4]


@pytest.mark.parametrize("first", FORMATS_WITH_OUTPUT)
@pytest.mark.parametrize("second", FORMATS_WITH_OUTPUT)
def test_what_a_dump_holds_survives_the_way_to_another_format(
    dumps: dict[str, Path], tmp_path: Path, first: str, second: str
) -> None:
    output = tmp_path / f"other{SUFFIX[second]}"
    cli("extract", dumps[first], "-f", second, "-o", output)
    before, after = memory_of(dumps[first]), memory_of(output)
    with fastdump.open(dumps[first]) as one, fastdump.open(output) as other:
        assert (one.regions, one.labels) == (other.regions, other.labels)
        for key in ("process", "time", "tool", "selection", "totals"):
            assert one.info()[key] == other.info()[key]
    assert gaps_of(before) == gaps_of(after)
    assert without_zeros(before) == without_zeros(after)
    assert len(without_zeros(before)) > 20


def test_a_core_and_its_lz4_become_each_other_bit_for_bit(
    dumps: dict[str, Path], tmp_path: Path
) -> None:
    cli("extract", dumps["lz4"], "-o", tmp_path / "a.core")
    assert (tmp_path / "a.core").read_bytes() == dumps["core"].read_bytes()
    cli("extract", dumps["core"], "-o", tmp_path / "a.core.lz4")
    assert (tmp_path / "a.core.lz4").read_bytes() == dumps["lz4"].read_bytes()
    piped = cli("extract", dumps["lz4"], "-o", "-", "-q").stdout
    assert piped == dumps["core"].read_bytes()
    packed = cli("extract", dumps["core"], "-o", "-", "-q").stdout
    assert packed == dumps["lz4"].read_bytes()


def test_an_unpacked_core_has_the_holes_that_a_core_has(
    dumps: dict[str, Path], tmp_path: Path
) -> None:
    cli("extract", dumps["lz4"], "-o", tmp_path / "a.core")
    ours, other = ((path.stat().st_blocks) for path in (tmp_path / "a.core", dumps["core"]))
    assert ours <= other + 8


def test_gdb_reads_a_core_that_is_made_of_a_raw_dump(
    dumps: dict[str, Path], tmp_path: Path
) -> None:
    core = tmp_path / "a.core"
    cli("extract", dumps["raw"], "-f", "core", "-o", core)
    with fastdump.open(dumps["raw"]) as source:
        region = next(r for r in source.regions if r.path == "[heap]")
        expected = source.read(region.start, 64)
    result = subprocess.run(
        ["gdb", "-nx", "-batch", "-c", core, "-ex", f"x/64xb {region.start:#x}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    shown = [
        int(word, 16) for word in result.stdout.split() if word.startswith("0x") and len(word) == 4
    ]
    assert bytes(shown) == expected


@pytest.mark.parametrize("format", FORMATS_WITH_OUTPUT)
def test_holes_of_a_file_without_a_manifest_stay_zeros(tmp_path: Path, format: str) -> None:
    (tmp_path / "dd").mkdir()
    with open(tmp_path / "dd" / "1_mem_10000000.bin", "wb") as file:
        file.seek(1 << 20)
        file.write(b"x" * 4096)
        file.truncate(4 << 20)
    output = tmp_path / f"other{SUFFIX[format]}"
    cli("extract", tmp_path / "dd", "-f", format, "-o", output)
    with fastdump.open(output) as source:
        expected = bytes(1 << 20) + b"x" * 4096 + bytes((3 << 20) - 4096)
        assert source.read(0x10000000, 4 << 20) == expected


@pytest.mark.parametrize("format", [None, *FORMATS_WITH_OUTPUT])
def test_a_range_is_written_as_it_is(
    awkward: targets.Target, dumps: dict[str, Path], format: str | None
) -> None:
    source = dumps[format] if format else awkward.pid
    with fastdump.open(dumps["core"]) as core:
        region = next(r for r in core.regions if r.path == "[heap]")
        expected = core.read(region.start + 100, 5000)
    got = cli("extract", source, f"{region.start + 100:x}+5000").stdout
    assert got == expected
    whole = cli("extract", source, "[heap]").stdout
    assert whole[100:5100] == expected
    assert len(whole) == region.end - region.start


def test_a_gap_in_a_range_is_zeros_and_said(dumps: dict[str, Path]) -> None:
    with fastdump.open(dumps["raw"]) as source:
        gap = next(part for part in source.walk() if isinstance(part, Gap))
    result = cli("extract", dumps["raw"], f"{gap.start:x}-{gap.end:x}", code=3)
    assert result.stdout == bytes(gap.end - gap.start)
    assert f"{gap.start:x}-{gap.end:x}: {gap.reason}".encode() in result.stderr


def test_a_range_goes_to_a_file(dumps: dict[str, Path], tmp_path: Path) -> None:
    with fastdump.open(dumps["core"]) as core:
        start = core.regions[0].start
        region = next(r for r in core.regions if r.path == "[heap]")
        expected = core.read(region.start, 100)
    cli("extract", dumps["core"], f"{region.start:x}+100", "-o", tmp_path / "piece")
    assert (tmp_path / "piece").read_bytes() == expected
    cli("extract", dumps["core"], f"{start:x}+100", "-o", tmp_path / "piece", code=7)
    assert (tmp_path / "piece").read_bytes() == expected


def test_a_write_that_is_cut_short_goes_on(
    dumps: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:5000], at))
    with open_source(str(dumps["lz4"])) as source:
        assert isinstance(source, Dumped)
        extract(source, "raw", str(tmp_path / "raw"))
    assert without_zeros(memory_of(tmp_path / "raw")) == without_zeros(memory_of(dumps["lz4"]))


def test_what_a_damaged_dump_has_lost_becomes_a_gap(dumps: dict[str, Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.core.lz4"
    content = bytearray(dumps["lz4"].read_bytes())
    with fastdump.open(dumps["lz4"]) as source:
        frames = source.source.storages[0]  # type: ignore[attr-defined]
        end = frames.index.offsets[3]
    content[end - 1] ^= 0x10  # a content checksum: not every bit within changes what is unpacked
    damaged.write_bytes(content)

    result = json.loads(cli("info", damaged, "--verify", "--json", code=6).stdout)
    lost = {(int(g["start"], 16), int(g["end"], 16)) for g in result["lost"]}
    assert lost
    assert all("checksum" in gap["reason"] for gap in result["lost"])
    shown = cli("info", damaged, "--verify", code=6).stdout.decode()
    assert all(f"{start:x}-{end:x}" in shown for start, end in sorted(lost)[:20])

    cli("extract", damaged, "-o", "-", "-q", code=6)
    for format in FORMATS_WITH_OUTPUT:
        output = tmp_path / f"salvaged{SUFFIX[format]}"
        cli("extract", damaged, "-f", format, "-o", output, "-q", code=3)
        salvaged, whole = memory_of(output), memory_of(dumps["lz4"])
        named = {tuple(gap[:2]) for gap in gaps_of(salvaged)} - {g[:2] for g in gaps_of(whole)}
        assert named == lost
        pages = without_zeros(whole)
        expected = {
            at: page
            for at, page in pages.items()
            if not any(start <= at < end for start, end in lost)
        }
        assert without_zeros(salvaged) == expected


class Failing(Storage):
    """A storage of which some bytes cannot be read any more."""

    def __init__(self, inner: Storage, start: int, end: int) -> None:
        self.inner, self.size, self.start, self.end = inner, inner.size, start, end

    def parts(self, offset: int, length: int) -> Iterator[bytes | memoryview | Lost]:
        stop = offset + length
        first = min(max(self.start, offset), stop)
        last = max(min(self.end, stop), first)
        yield from self.inner.parts(offset, first - offset)
        if first < last:
            yield Lost(last - first, "Input/output error")
        yield from self.inner.parts(last, stop - last)

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("first", ["core", "raw"])
@pytest.mark.parametrize("second", FORMATS_WITH_OUTPUT)
def test_what_cannot_be_read_on_the_way_becomes_a_gap(
    dumps: dict[str, Path], tmp_path: Path, first: str, second: str
) -> None:
    """A bad sector, or a server that fails: there is no checksum that tells before."""
    output = tmp_path / f"other{SUFFIX[second]}"
    with open_source(str(dumps[first])) as source:
        assert isinstance(source, Dumped)
        s = next(s for s in source.slices if s.length > 16384 and any(source.read(s.address, 8192)))
        lost = (s.address + 4096, s.address + 12288)
        source.storages = list(source.storages)
        source.storages[s.file] = Failing(
            source.storages[s.file], s.file_offset + 4096, s.file_offset + 12288
        )
        report = extract(source, second, str(output))
    assert report.exit_code == 3
    assert [tuple(gap) for gap in report.lost] == [(*lost, "Input/output error", 0)]
    whole, salvaged = memory_of(dumps[first]), memory_of(output)
    assert set(gaps_of(salvaged)) - set(gaps_of(whole)) == {(*lost, "Input/output error", 0)}
    expected = {at: p for at, p in without_zeros(whole).items() if not lost[0] <= at < lost[1]}
    assert without_zeros(salvaged) == expected


@pytest.mark.parametrize("damage", ["cut", "header", "none left"])
def test_a_packed_file_that_ends_early_is_not_whole(
    dumps: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    folder = shutil.copytree(dumps["raw-lz4"], tmp_path / "damaged.raw-lz4")
    with open_source(str(folder)) as source:
        assert isinstance(source, Dumped)
        s = max(source.slices, key=lambda s: s.length)
        packed = source.storages[s.file]
        assert isinstance(packed, PackedFile)
        assert isinstance(packed.opened, Frames)
        assert packed.opened.count > 1
        at, start = packed.opened.index.offsets[1], packed.opened.index.starts[1]
    file = folder / packed.name
    content = bytearray(file.read_bytes())
    if damage == "cut":
        del content[-1:]
        start = packed.opened.index.starts[-2]
    elif damage == "header":
        content[at + 6] ^= 1
    else:  # the first frame is of a kind that cannot be read
        content[4] &= ~8
        start = 0
    file.write_bytes(content)
    told = json.loads(cli("info", folder, "--verify", "--json", code=6).stdout)
    lost = [(int(gap["start"], 16), int(gap["end"], 16)) for gap in told["lost"]]
    assert lost == [(s.address + start, s.address + s.length)]
    assert b"all checksums" not in cli("info", folder, "--verify", code=6).stdout
    for format in FORMATS_WITH_OUTPUT:
        output = tmp_path / f"salvaged{SUFFIX[format]}"
        cli("extract", folder, "-f", format, "-o", output, "-q", code=3)
        salvaged, whole = memory_of(output), memory_of(dumps["raw-lz4"])
        assert {g[:2] for g in gaps_of(salvaged)} - {g[:2] for g in gaps_of(whole)} == set(lost)
        pages = without_zeros(whole)
        expected = {at: p for at, p in pages.items() if not lost[0][0] <= at < lost[0][1]}
        assert without_zeros(salvaged) == expected
    # Without the manifest nothing tells how long it was, but that it was longer.
    if damage == "cut":
        (folder / "manifest.json").unlink()
        told = json.loads(cli("info", folder, "--verify", "--json", code=6).stdout)
        assert any(packed.name in problem for problem in told["problems"])
        assert b"all checksums" not in cli("info", folder, "--verify", code=6).stdout


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.999])
def test_a_dump_that_was_cut_off_gives_what_is_left(
    dumps: dict[str, Path], tmp_path: Path, keep: float
) -> None:
    for format in ("core", "lz4"):
        content = dumps[format].read_bytes()
        cut = tmp_path / f"cut{SUFFIX[format]}"
        cut.write_bytes(content[: int(len(content) * keep)])
        shown = cli("info", cut, "--verify", code=6).stdout.decode()
        assert "cut off" in shown or "seek table is missing" in shown
        pages, whole = without_zeros(memory_of(cut)), without_zeros(memory_of(dumps[format]))
        assert pages.items() <= whole.items()
        assert len(pages) > 0.1 * keep * len(whole)


def test_info_tells_whose_dump_it_is(awkward: targets.Target, dumps: dict[str, Path]) -> None:
    for format, path in dumps.items():
        told = json.loads(cli("info", path, "--json").stdout)
        assert told["process"]["pid"] == awkward.pid
        assert told["format"] == format
        assert told["labels"]["total"]["regions"] == len(told["regions"])
        for region in told["regions"]:
            assert region["data"] + region["zeros"] <= region["size"]
        text = cli("info", path, "--regions", "--verify").stdout.decode()
        assert str(awkward.pid) in text
        assert "[heap]" in text
        assert "verified" in text
    live = json.loads(cli("info", awkward.pid, "--json").stdout)
    assert live["format"] == "process"
    assert live["process"]["pid"] == awkward.pid


def test_info_of_a_core_of_gcore_tells_threads_and_notes(tmp_path: Path) -> None:
    with targets.start("threads", 3) as target:  # of awkward, gdb waits for a userfaultfd
        pid = target.pid
        subprocess.run(["gcore", "-o", tmp_path / "g", str(pid)], check=True, capture_output=True)
        core = tmp_path / f"g.{pid}"
        told = json.loads(cli("info", core, "--json").stdout)
        tids = {int(name) for name in os.listdir(f"/proc/{pid}/task")}
        assert {thread["tid"] for thread in told["threads"]} == tids
    assert {"NT_PRSTATUS", "NT_AUXV", "NT_FILE"} <= {note["type"] for note in told["notes"]}
    names = {region["path"]: region["label"] for region in told["regions"]}
    assert names["[heap]"] == "heap"
    assert names["[stack]"] == "stack"
    assert "thread stack" in told["labels"]
    assert "no manifest" in cli("info", core).stdout.decode()


def test_errors_say_what_to_do(
    awkward: targets.Target, dumps: dict[str, Path], tmp_path: Path
) -> None:
    for words, hint in (
        (("extract", awkward.pid), b"dump writes"),
        (("extract", dumps["core"], "-f", "raw", "-o", "-"), b"-o"),
        (("extract", dumps["core"], "[heap]", "-f", "core"), b"RANGE"),
        (("info", tmp_path), b"no PID_mem_START.bin"),
        (("info", "/etc/passwd"), b"name a pid"),
        (("info", awkward.pid, "--verify"), b"name a dump"),
        (("info", tmp_path / "nothing"), b"cannot read"),
    ):
        assert hint in cli(*words, code=2).stderr
    os.makedirs(tmp_path / "a.core.lz4")
    cli("extract", dumps["core"], "-o", tmp_path / "a.core.lz4", code=7)
