"""Huge mappings with little in them, and very many mappings."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import targets
from conftest import MANY
from test_formats import (
    FORMATS_WITH_OUTPUT,
    PAGE_SIZE,
    Dump,
    examined,
    gdb,
    regions_of,
    run_well,
)


def growing(pid: int) -> int:
    """VmRSS and VmPTE, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("VmRSS", "VmPTE")))


def dump_sparse(target: targets.Target, format: str, folder: Path, *options: str) -> Dump:
    """Dump a target that must not grow, into an output that must stay small."""
    before = growing(target.pid)
    found = run_well(target.pid, format, folder, *options)
    assert growing(target.pid) - before < 1 << 20
    assert found.disk_usage < 20_000_000
    assert found.report["size"] < 20_000_000
    return found


def has_no_data(found: Dump, start: int, end: int) -> bool:
    """Whether a dump has not a byte for ``[start, end)``: no segment, no file, or a hole."""
    for extent in found.extents:
        if extent.start < end and start < extent.end:
            with open(extent.path, "rb") as file:
                if found.format != "raw" or os.fstat(file.fileno()).st_blocks:
                    return False
    return True


@pytest.mark.parametrize("format", FORMATS_WITH_OUTPUT)
def test_a_thousand_pages_in_two_tebibytes(format: str, tmp_path: Path) -> None:
    with targets.start("sparse", "private") as target:
        start, end, seed = (target.truth[key] for key in ("start", "end", "seed"))
        found = dump_sparse(target, format, tmp_path)
    assert found.report["bytes"]["selected"] >= end - start == 2 << 40
    assert found.report["bytes"]["read"] < 10 << 20
    touched = target.truth["touched"]
    assert len(touched) == 1000
    wrong = [
        hex(page)
        for page in touched
        if found.read(page, PAGE_SIZE) != targets.pattern(page, PAGE_SIZE, seed)
    ]
    assert not wrong
    for page in touched[::100]:
        assert not any(found.read(page + PAGE_SIZE, PAGE_SIZE))


@pytest.mark.parametrize("format", FORMATS_WITH_OUTPUT)
def test_shared_memory_that_nobody_touched_is_not_allocated(format: str, tmp_path: Path) -> None:
    with targets.start("sparse", "shared") as target:
        start, end = target.truth["start"], target.truth["end"]
        found = dump_sparse(target, format, tmp_path, "--include", "shared memory")
    assert end - start == 64 << 30
    assert found.region_at(start)["dumped"] == "all"
    assert found.report["bytes"]["absent"] >= end - start
    assert has_no_data(found, start, end)


@pytest.mark.parametrize("format", FORMATS_WITH_OUTPUT)
def test_the_zero_page_is_not_read(format: str, tmp_path: Path) -> None:
    with targets.start("sparse", "zero", "1G") as target:
        start, end = target.truth["start"], target.truth["end"]
        found = dump_sparse(target, format, tmp_path)
    assert found.report["bytes"]["zero"] >= end - start == 1 << 30
    assert found.report["bytes"]["read"] < 10 << 20
    assert has_no_data(found, start, end)


# ---- More mappings than an ELF header can count.


@pytest.fixture(scope="module")
def core_of_many(
    many_maps: targets.Target, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dump]:
    found = run_well(many_maps.pid, "core", tmp_path_factory.mktemp("many"))
    yield found
    found.path.unlink()


def some_pages(target: targets.Target) -> list[int]:
    """The address of a page near each end, in the middle, and either side of the 65,536th."""
    start, count = target.truth["start"], target.truth["count"]
    indexes = (0, 1, 2, 3, count // 2, count // 2 + 1, 65_533, 65_534, 65_535, 65_536)
    indexes += (count - 2, count - 1)
    return [start + index * PAGE_SIZE for index in indexes if index < count]


def test_many_mappings_hold_the_pattern(many_maps: targets.Target, core_of_many: Dump) -> None:
    start, end, seed = (many_maps.truth[key] for key in ("start", "end", "seed"))
    assert core_of_many.read(start, end - start) == targets.pattern(start, end - start, seed)


def test_readelf_counts_more_segments_than_e_phnum_can(
    many_maps: targets.Target, core_of_many: Dump
) -> None:
    result = subprocess.run(
        ["readelf", "-lW", core_of_many.path], capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    assert "arning" not in result.stdout
    counts = re.findall(r"^There are (\d+) program headers", result.stdout, re.MULTILINE)
    loads = len(re.findall(r"^  LOAD ", result.stdout, re.MULTILINE))
    assert counts == [str(loads + 1)]
    assert loads >= len(regions_of(many_maps.pid)) >= MANY
    header = subprocess.run(
        ["readelf", "-hW", core_of_many.path], capture_output=True, text=True, check=True
    )
    assert re.search(rf"Number of program headers: +65535 \({loads + 1}\)", header.stdout)


def test_gdb_reads_many_mappings_back(many_maps: targets.Target, core_of_many: Dump) -> None:
    pages = some_pages(many_maps)
    _, output = gdb(many_maps, core_of_many.path, *(f"x/8gx {page:#x}" for page in pages))
    seed = many_maps.truth["seed"]
    for page in pages:
        assert examined(output, page) == targets.pattern(page, 64, seed)


def test_lz4_of_many_mappings_is_the_core(
    many_maps: targets.Target, core_of_many: Dump, tmp_path: Path
) -> None:
    found = run_well(many_maps.pid, "lz4", tmp_path)
    subprocess.run(["lz4", "-tq", found.path], check=True)
    assert found.core.read_bytes() == core_of_many.path.read_bytes()


def check_folder(target: targets.Target, format: str, folder: Path) -> None:
    found = run_well(target.pid, format, folder)
    pages = [page for page in some_pages(target) if found.region_at(page)["files"]]
    assert len(pages) > 3
    for page in pages:
        expected = targets.pattern(page, PAGE_SIZE, target.truth["seed"])
        assert found.read(page, PAGE_SIZE) == expected
    listed = sum(len(region["files"]) for region in found.regions)
    assert listed == len(os.listdir(found.path)) - 1
    assert listed >= target.truth["count"] // 2


@pytest.mark.parametrize("format", ["raw", "raw-lz4"])
def test_folders_of_many_mappings(tmp_path: Path, format: str) -> None:
    """A file each has no limit of 65,535: 8,000 do."""
    with targets.start("many_maps", 8000) as target:
        check_folder(target, format, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("format", ["raw", "raw-lz4"])
def test_folders_of_all_mappings(many_maps: targets.Target, tmp_path: Path, format: str) -> None:
    check_folder(many_maps, format, tmp_path)
