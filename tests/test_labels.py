"""Labels: the awkward target's own truth decides."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import targets
from fastdump._native import PAGE_SIZE
from fastdump.labels import Kind, Label, _load_segments, _NotAModule, label_regions
from fastdump.process import LiveProcess
from fastdump.region import Region
from fastdump.snapshot import Snapshot
from fastdump.sources import open_source


def test_every_region_of_the_awkward_target(awkward: targets.Target) -> None:
    with LiveProcess(awkward.pid) as process:
        regions = process.regions()
        labels = label_regions(process, regions)
    wrong = {}
    for truth in awkward.truth["regions"]:
        found = [
            label
            for region, label in zip(regions, labels, strict=True)
            if region.start < truth["end"] and truth["start"] < region.end
        ]
        assert found, truth["name"]
        if {label.kind.value for label in found} != {truth["label"]}:
            wrong[truth["name"]] = (truth["label"], found)
    assert not wrong


def test_a_bss_tail_names_its_module(awkward: targets.Target) -> None:
    bss = awkward.region("plugin bss")
    with LiveProcess(awkward.pid) as process:
        regions = process.regions()
        labels = label_regions(process, regions)
    named = [
        label.module
        for region, label in zip(regions, labels, strict=True)
        if region.start <= bss["start"] < region.end and not region.path
    ]
    assert [Path(module).name for module in named] == ["plugin.bin"]


def test_only_files_without_a_name_are_lost(awkward: targets.Target) -> None:
    with LiveProcess(awkward.pid) as process:
        labels = label_regions(process, process.regions())
    lost = {Path(label.module).name for label in labels if label.module and label.lost}
    assert lost == {"deleted-library.so (deleted)", "memfd:library (deleted)"}


def test_a_hostile_elf_file_gets_a_note(awkward: targets.Target) -> None:
    with LiveProcess(awkward.pid) as process:
        regions = process.regions()
        labels = label_regions(process, regions)
    for name in ("elf garbage", "elf truncated", "elf phnum"):
        start = awkward.region(name)["start"]
        label = next(
            label for region, label in zip(regions, labels, strict=True) if region.start == start
        )
        assert label.kind is Kind.FILE
        assert label.note.startswith("broken ELF file"), name


def test_a_running_thread_is_known_by_its_robust_list(tmp_path: Path) -> None:
    with targets.start("awkward", tmp_path, "spin") as target, LiveProcess(target.pid) as process:
        regions = process.regions()
        labels = label_regions(process, regions)
        for thread in target.truth["threads"]:
            label = next(
                label
                for region, label in zip(regions, labels, strict=True)
                if region.start <= thread["stack"] < region.end
            )
            assert label.kind is Kind.THREAD_STACK, thread


def labels_of(process: LiveProcess) -> list[tuple[Region, Label]]:
    regions = process.regions()
    return list(zip(regions, label_regions(process, regions), strict=True))


# A stack and what the kernel joined to it, as it did before Linux 6.7: here the program does.
JOINED = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None)
memory = mmap.mmap(-1, (4 << 20) + 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.write(b"data" * (1 << 20))
place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
# What lies behind it is not joined to it, too.
libc.mprotect(ctypes.c_void_p(place + (4 << 20)), ctypes.c_size_t(4096), 0)
attributes, thread = ctypes.create_string_buffer(64), ctypes.c_ulong()
libc.pthread_attr_init(attributes)
size = int(sys.argv[1])
libc.pthread_attr_setstack(attributes, ctypes.c_void_p(place), ctypes.c_size_t(size))
libc.pthread_create(ctypes.byref(thread), attributes, libc.pause, None)
print("ready", hex(place), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("size", [1 << 20, (4 << 20) - PAGE_SIZE])
def test_what_is_joined_to_a_stack_is_none(in_tmp: Path, size: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", JOINED, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        place = int(process.stdout.readline().split()[1], 16)
        found = {}
        with LiveProcess(process.pid) as live:
            while not any(place <= stack.own < place + size for stack in live.thread_stacks()):
                pass  # until it has begun
            found["live"] = labels_of(live)
            with Snapshot(live, "fork!") as snapshot:
                found["copy"] = labels_of(snapshot.process)
        subprocess.run(
            ["gcore", "-o", "core", str(process.pid)],
            check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip
        with open_source(f"core.{process.pid}") as source:
            found["core"] = list(zip(source.regions, source.labels, strict=True))
        process.communicate()
    for way, labels in found.items():
        (label,) = (label for region, label in labels if region.start <= place < region.end)
        if size == 1 << 20:
            assert label == Label(Kind.ANONYMOUS, note="the stack of a thread lies in it"), way
        else:
            assert label == Label(Kind.THREAD_STACK), way


def load_segments(content: bytes, path: Path) -> object:
    path.write_bytes(content)
    with path.open("rb") as file:
        return _load_segments(file, len(content))


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_no_elf_file_does_more_than_lack_a_label(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    good = bytearray(Path("/proc/self/exe").read_bytes()[:4096])
    for _ in range(data.draw(st.integers(0, 8))):
        good[data.draw(st.integers(4, 200))] = data.draw(st.integers(0, 255))
    content = bytes(good[: data.draw(st.integers(0, len(good)))])
    path = tmp_path_factory.getbasetemp() / "fuzzed.elf"
    with contextlib.suppress(_NotAModule):
        assert load_segments(content, path)


@pytest.mark.parametrize("phnum", [0, 2, 0xFFFF])
def test_program_headers_out_of_bounds(phnum: int, tmp_path: Path) -> None:
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1".ljust(16, b"\0"), 3, 62, 1, 0, 2**62, 0, 0, 64, 56, phnum, 64, 0, 0,
    )  # fmt: skip
    with pytest.raises(_NotAModule):
        load_segments(header, tmp_path / "x")


def test_a_file_that_cannot_be_read_is_known_by_its_mappings(
    awkward: targets.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each, reading gives EIO, as of a failing disk."""
    monkeypatch.setattr(
        LiveProcess, "open_mapped", lambda *_: os.open("/proc/self/mem", os.O_RDONLY)
    )
    with LiveProcess(awkward.pid) as process:
        regions = process.regions()
        labels = label_regions(process, regions)
    found = {Path(region.path).name: label for region, label in zip(regions, labels, strict=True)}
    assert found["plugin.bin"].kind is Kind.LIBRARY
    assert found["plugin.bin"].lost
    assert found["data.so"] == Label(Kind.FILE, note="the file cannot be read: Input/output error")


def test_without_map_files_the_targets_root_serves(
    awkward: targets.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def no_map_files(path: str, *args: int, **kwargs: int) -> int:
        if "/map_files/" in str(path):
            raise PermissionError(1, "Operation not permitted")
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", no_map_files)
    with LiveProcess(awkward.pid) as process:
        regions = process.regions()
        by_start = dict(zip(regions, label_regions(process, regions), strict=True))
        for region, label in by_start.items():
            if region.path.endswith("/plugin.bin"):
                assert label.kind is Kind.LIBRARY
                assert not label.note
            if region.path.endswith("/data.so"):
                assert label.kind is Kind.FILE
                assert not label.note
            if region.path.endswith("/deleted-library.so (deleted)"):
                assert label.kind is Kind.LIBRARY  # by its executable mapping
