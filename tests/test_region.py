"""Regions: parsing /proc/PID/maps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import targets
from fastdump.region import Region, parse_maps

PERMS = st.tuples(*(st.sampled_from(pair) for pair in ("r-", "w-", "x-", "ps"))).map("".join)
# Any path that the kernel can show: no NUL, and a newline only as \012.
PATHS = st.one_of(
    st.just(""),
    st.sampled_from(["[heap]", "[anon:a name]", "anon_inode:[io_uring]", "/memfd:x y (deleted)"]),
    st.binary(max_size=60)
    .filter(lambda b: b"\0" not in b and b"\\012" not in b)
    .map(lambda b: "/" + os.fsdecode(b)),
)
REGIONS = st.builds(
    Region,
    start=st.integers(0, 2**52).map(lambda n: n * 4096),
    end=st.integers(2**52, 2**52 + 2**20).map(lambda n: n * 4096),
    perms=PERMS,
    offset=st.integers(0, 2**50).map(lambda n: n * 4096),
    dev=st.sampled_from(["00:00", "fe:00", "103:02", "00:2a"]),
    inode=st.integers(0, 2**63),
    path=PATHS,
)


def line_of(region: Region) -> str:
    """As show_map_vma() of Linux fs/proc/task_mmu.c prints it."""
    head = (
        f"{region.start:08x}-{region.end:08x} {region.perms} {region.offset:08x} "
        f"{region.dev} {region.inode} "
    )
    path = region.path.replace("\n", "\\012")
    return (head.ljust(73) + path if path else head) + "\n"


@given(st.lists(REGIONS, max_size=8))
def test_what_the_kernel_prints_is_parsed_back(regions: list[Region]) -> None:
    assert parse_maps("".join(map(line_of, regions))) == regions


@pytest.mark.parametrize(
    "line",
    ["garbage", "1000-2000 rw-p 0 00:00", "1000 rw-p 00000000 00:00 0", "x-y rw-p 0 00:00 0"],
)
def test_a_line_of_another_form_is_an_error(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_maps(line + "\n")


def test_awkward_paths_of_a_real_process(awkward: targets.Target) -> None:
    text = Path(f"/proc/{awkward.pid}/maps").read_bytes().decode("utf-8", "surrogateescape")
    regions = {region.start: region for region in parse_maps(text)}
    seen = 0
    for truth in awkward.truth["regions"]:
        if not truth["exact"]:
            continue
        region = regions[truth["start"]]
        assert (region.end, region.perms) == (truth["end"], truth["perms"]), truth["name"]
        if truth["path"] and truth["name"] != "backslash 012":  # which looks like a newline
            assert region.path.removesuffix(" (deleted)") == truth["path"].removesuffix(
                " (deleted)"
            )
            seen += 1
    assert seen > 10
