"""Each format, as foreign tools read it: readelf, gdb, eu-readelf, pyelftools and lz4.

``run`` and ``Dump`` serve the other tests of whole dumps too.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import functools
import itertools
import json
import mmap
import os
import random
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import lz4.frame
import pytest
from elftools.elf.elffile import ELFFile

import targets
from conftest import program
from fastdump._native import Copier, Gap, address_of
from fastdump.dump import FORMATS, dump, open_writer
from fastdump.dumped import Dumped
from fastdump.labels import Kind
from fastdump.process import LiveProcess
from fastdump.region import Range, Region, parse_maps
from fastdump.selection import Preset
from fastdump.snapshot import Snapshot
from fastdump.sources import open_source
from fastdump.survey import Survey

FORMATS_WITH_OUTPUT = tuple(name for name in FORMATS if name != "null")
PAGE_SIZE = os.sysconf("SC_PAGESIZE")
EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
DUMP = (sys.executable, "-m", "fastdump", "dump")


# ---- Running fastdump, and reading what it wrote.


class Extent(NamedTuple):
    """Addresses ``[start, end)``, whose bytes lie in a file from *offset* on."""

    start: int
    end: int
    path: Path
    offset: int


@functools.lru_cache(maxsize=8)
def _unpacked(path: Path) -> bytes:
    with lz4.frame.open(path) as file:
        content: bytes = file.read()
    return content


@dataclass
class Dump:
    """A dump that has ended: what fastdump said of it, and its memory by address."""

    format: str
    path: Path
    exit_code: int
    report: dict[str, Any]
    stderr: str

    @cached_property
    def core(self) -> Path:
        """The ELF core: the dump itself, or what lz4(1) makes of it."""
        if self.format == "core":
            return self.path
        core = self.path.with_name(f"{self.path.name}.unpacked")
        with open(core, "wb") as file:
            subprocess.run(["lz4", "-dc", self.path], stdout=file, check=True)
        return core

    @cached_property
    def manifest(self) -> dict[str, Any]:
        text: bytes
        if self.format in ("core", "lz4"):
            with open(self.core, "rb") as file:
                (note,) = ELFFile(file).get_section_by_name(".note.fastdump").iter_notes()
            assert note["n_name"] == "FASTDUMP"
            text = note["n_descdata"]
        else:
            text = (self.path / "manifest.json").read_bytes()
        manifest: dict[str, Any] = json.loads(text)
        return manifest

    @cached_property
    def regions(self) -> list[dict[str, Any]]:
        """The manifest's regions, with addresses as numbers."""
        return [
            {**r, "start": int(r["start"], 16), "end": int(r["end"], 16)}
            for r in self.manifest["regions"]
        ]

    @cached_property
    def gaps(self) -> set[tuple[int, int, str]]:
        return {
            (int(g["start"], 16), int(g["end"], 16), g["reason"]) for g in self.manifest["gaps"]
        }

    @cached_property
    def extents(self) -> list[Extent]:
        """Where the bytes are, in address order."""
        if self.format in ("core", "lz4"):
            return [
                Extent(s["p_vaddr"], s["p_vaddr"] + s["p_filesz"], self.core, s["p_offset"])
                for s in load_segments(self.core)
                if s["p_filesz"]
            ]
        files = [file for region in self.regions for file in region["files"]]
        return [
            Extent(int(f["start"], 16), int(f["end"], 16), self.path / f["name"], 0) for f in files
        ]

    def region_at(self, address: int) -> dict[str, Any]:
        return next(r for r in self.regions if r["start"] <= address < r["end"])

    def read(self, address: int, length: int) -> bytes:
        """The bytes of ``[address, address + length)``, zeros where the dump has none."""
        out = bytearray(length)
        index = bisect.bisect_right(self.extents, address, key=lambda e: e.end)
        for extent in self.extents[index:]:
            start, end = max(extent.start, address), min(extent.end, address + length)
            if start >= end:
                break
            content = self._content(extent, start, end - start)
            assert len(content) == end - start, f"{extent.path} is too short"
            out[start - address : end - address] = content
        return bytes(out)

    def _content(self, extent: Extent, start: int, length: int) -> bytes:
        at = extent.offset + start - extent.start
        if extent.path.suffix == ".lz4":
            return _unpacked(extent.path)[at : at + length]
        with open(extent.path, "rb") as file:
            return os.pread(file.fileno(), length, at)

    @property
    def disk_usage(self) -> int:
        """Bytes on the disk."""
        files = self.path.iterdir() if self.path.is_dir() else [self.path]
        return sum(file.stat().st_blocks * 512 for file in files)


def run(pid: int, format: str, folder: Path, *options: str, epoch: bool = True) -> Dump:
    """Run ``fastdump dump``; *folder* gets the output."""
    words = [re.sub(r"[^\w.-]", "_", option) for option in options]
    output = folder / ".".join([str(pid), *words, format])
    if "--pause" not in options:
        options = (*options, "--pause", "none")  # of two pauses no two manifests are the same
    result = subprocess.run(
        [*DUMP, str(pid), "--format", format, "--output", output, "--json", *options],
        capture_output=True,
        text=True,
        env={**os.environ, **(EPOCH if epoch else {})},
        timeout=300,
    )
    report = json.loads(result.stdout) if result.stdout else {}
    return Dump(format, output, result.returncode, report, result.stderr)


def run_well(pid: int, format: str, folder: Path, *options: str) -> Dump:
    """Run ``fastdump dump``, which must be complete."""
    done = run(pid, format, folder, *options)
    assert (done.exit_code, done.stderr) == (0, "")
    return done


def load_segments(core: Path) -> list[dict[str, int]]:
    """The PT_LOAD program headers of a core."""
    with open(core, "rb") as file:
        segments = ELFFile(file).iter_segments("PT_LOAD")
        return [dict(segment.header) for segment in segments]


def regions_of(pid: int) -> list[Region]:
    """The lines of ``/proc/PID/maps``."""
    return parse_maps(os.fsdecode(Path(f"/proc/{pid}/maps").read_bytes()))


# ---- The targets: stopped, so that two dumps are of the same bytes.


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[targets.Target]:
    with targets.start("awkward", tmp_path_factory.mktemp("awkward")) as target:
        target.stop()
        yield target


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[targets.Target]:
    """One of its own: a thread that runs for a fork changes memory (rseq(2): its CPU)."""
    with targets.start("awkward", tmp_path_factory.mktemp("paused")) as target:
        target.stop()
        yield target


@pytest.fixture(scope="module")
def threads() -> Iterator[targets.Target]:
    with targets.start("threads", 8) as target:
        target.stop()
        yield target


@pytest.fixture(params=["awkward", "threads"])
def target(request: pytest.FixtureRequest) -> targets.Target:
    found: targets.Target = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dumps")


@pytest.fixture(scope="module")
def dump_of(folder: Path) -> Any:
    """``dump_of(target, format, *options)``, made once for all tests."""
    made: dict[tuple[Any, ...], Dump] = {}

    def find(target: targets.Target, format: str, *options: str) -> Dump:
        key = (target.pid, format, *options)
        if key not in made:
            made[key] = run_well(target.pid, format, folder, *options)
        return made[key]

    return find


def known_pieces(region: dict[str, Any]) -> Iterator[tuple[int, int, str, bytes]]:
    """``start, end, kind, bytes`` for what is known of a region of the awkward target."""
    for start, end, kind, seed in region["content"]:
        content = targets.expected(start, end, kind, seed)
        if content is not None:
            yield start, end, kind, content


# ---- What every format holds.

PAUSES = ("none", "freeze", "fork!")


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("format", FORMATS_WITH_OUTPUT)
def test_all_holds_every_byte_that_the_awkward_target_knows(
    paused: targets.Target, dump_of: Any, format: str, pause: str
) -> None:
    found = dump_of(paused, format, "--all", "--pause", pause)
    assert found.manifest["pause"] == pause.rstrip("!")
    wrong = [
        f"{region['name']}: {kind} at {start:#x}"
        for region in paused.truth["regions"]
        for start, end, kind, content in known_pieces(region)
        if found.read(start, end - start) != content
    ]
    assert not wrong
    kinds = {piece[2] for region in paused.truth["regions"] for piece in region["content"]}
    assert {"pattern", "zero", "zeropage", "absent", "elsewhere", "file", "tail"} <= kinds


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("format", FORMATS_WITH_OUTPUT)
def test_default_holds_all_of_what_it_says_it_dumped(
    paused: targets.Target, dump_of: Any, format: str, pause: str
) -> None:
    found = dump_of(paused, format, "--pause", pause)
    for region in paused.truth["regions"]:
        dumped = found.region_at(region["start"])["dumped"]
        for start, end, kind, content in known_pieces(region):
            bytes_are_in = dumped == "all" or (dumped == "modified pages" and kind == "pattern")
            if bytes_are_in:
                assert found.read(start, end - start) == content, (region["name"], kind)
            for extent in found.extents:  # nor has it other bytes of anything else
                low, high = max(start, extent.start), min(end, extent.end)
                if low < high:
                    assert found.read(low, high - low) == content[low - start : high - start]
        if dumped == "none":
            inside = [e for e in found.extents if region["start"] <= e.start < region["end"]]
            assert not inside, region["name"]


@pytest.mark.parametrize("format", FORMATS_WITH_OUTPUT)
def test_pages_that_only_another_process_touched_are_dumped(
    awkward: targets.Target, dump_of: Any, format: str
) -> None:
    found = dump_of(awkward, format, "--all")
    pieces = [
        piece
        for name in ("shared anonymous", "memfd shared", "sysv")
        for piece in known_pieces(awkward.region(name))
        if piece[2] == "elsewhere"
    ]
    assert len(pieces) >= 4
    for start, end, _, content in pieces:
        assert found.read(start, end - start) == content


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("format", FORMATS_WITH_OUTPUT)
def test_guard_pages_and_pages_past_eof_are_the_only_gaps_and_expected(
    paused: targets.Target, dump_of: Any, format: str, pause: str
) -> None:
    reasons = {"guard": "guard page", "nodata": "past end of file"}
    gaps = {
        (start, end, reasons[kind])
        for region in paused.truth["regions"]
        for start, end, kind, _ in region["content"]
        if kind in reasons
    }
    assert dump_of(paused, format, "--pause", pause).gaps == gaps
    assert dump_of(paused, format, "--all", "--pause", pause).gaps == gaps


@pytest.mark.parametrize("options", [(), ("--with-libraries",), ("--all",)], ids=" ".join)
@pytest.mark.parametrize("format", FORMATS)
def test_every_selected_byte_is_accounted_for_once(
    target: targets.Target, folder: Path, dump_of: Any, format: str, options: tuple[str, ...]
) -> None:
    found = dump_of(target, format, *options)
    totals = found.report["bytes"]
    assert totals["selected"] > 0
    assert totals["selected"] == sum(v for k, v in totals.items() if k != "selected")
    assert totals["gap"] == sum(found.report["gaps"].values())
    if format != "null":
        assert found.manifest["totals"] == totals
        assert totals["gap"] == sum(end - start for start, end, _ in found.gaps)
        assert found.manifest["complete"] is True


@pytest.mark.parametrize("format", FORMATS_WITH_OUTPUT)
def test_manifest_lists_each_line_of_maps(
    target: targets.Target, dump_of: Any, format: str
) -> None:
    def comparable(*values: Any) -> list[Any]:  # maps writes a newline in a path as \012
        return [v.replace("\\012", "\n") if isinstance(v, str) else v for v in values]

    listed = [[r[key] for key in Region._fields] for r in dump_of(target, format).regions]
    there = regions_of(target.pid)
    assert [comparable(*values) for values in listed] == [comparable(*r) for r in there]
    labels = {r["label"] for r in dump_of(target, format).regions}
    assert labels <= {kind.value for kind in Kind}


def _bytes_of(found: Dump) -> dict[str, bytes]:
    if found.path.is_dir():
        return {file.name: file.read_bytes() for file in found.path.iterdir()}
    return {"": found.path.read_bytes()}


@pytest.mark.parametrize("format", FORMATS_WITH_OUTPUT)
def test_any_number_of_threads_gives_the_same_bytes(
    awkward: targets.Target, tmp_path: Path, format: str
) -> None:
    one, two, five = (
        run_well(awkward.pid, format, tmp_path, "--all", f"--threads={count}")
        for count in (1, 2, 5)
    )
    assert _bytes_of(one) == _bytes_of(two) == _bytes_of(five)
    assert one.report["threads"] == 1
    assert five.report["threads"] == 5


@pytest.mark.parametrize("format", FORMATS_WITH_OUTPUT)
def test_more_gaps_than_a_manifest_lists_are_not_data(
    awkward: targets.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr("fastdump.gaps.MOST_GAPS", 2)
    output = tmp_path / "out"
    pages: list[int] = []
    with (
        LiveProcess(awkward.pid) as process,
        contextlib.closing(Survey(process, Preset.DATA)) as survey,
    ):
        writer, name = open_writer(format, str(output))
        read = writer.work

        def work(copier: Copier, piece: Any) -> Any:
            result = read(copier, piece)
            for s in getattr(piece, "slices", piece):
                found = range(s.address, s.address + s.length, 2 * PAGE_SIZE)
                copier.gaps += (Gap(at, at + PAGE_SIZE, "swapped") for at in found)
                pages.extend(found)
            return result

        monkeypatch.setattr(writer, "work", work)
        report = dump(survey, Snapshot(process), writer, name, format, threads=1, begun=0)
    assert report.exit_code == 3
    assert "too many gaps" in report.loss
    with open_source(str(output)) as source:
        assert isinstance(source, Dumped)
        assert source.manifest
        assert len(source.manifest.gaps) < len(source.regions) < len(pages)
        for at in pages:
            assert all(isinstance(p, Gap) for p in source.walk([Range(at, at + PAGE_SIZE)]))


@pytest.mark.parametrize("format", FORMATS_WITH_OUTPUT)
def test_kernels_without_pagemap_scan_give_the_same_memory(
    awkward: targets.Target, tmp_path: Path, format: str
) -> None:
    output = tmp_path / "fallback"
    with LiveProcess(awkward.pid) as process:
        process.memory.use_pagemap()
        survey = Survey(process, Preset.ALL)
        writer, name = open_writer(format, str(output))
        report = dump(
            survey, Snapshot(process), writer, name, format, threads=2, begun=time.perf_counter()
        )
        survey.close()
    assert report.exit_code == 0
    fallback = Dump(format, output, 0, report.as_dict(), "")
    # Not one taken earlier: where a thread runs for a fork, the kernel notes its CPU (rseq(2)).
    usual = run_well(awkward.pid, format, tmp_path, "--all")
    assert fallback.gaps == usual.gaps
    # pagemap does not tell the zero page from others: it is read, and where nothing is
    # written of a file differs; the memory may not.
    for region in usual.regions:
        if region["dumped"] == "all":
            span = region["start"], region["end"] - region["start"]
            assert fallback.read(*span) == usual.read(*span), hex(region["start"])


@pytest.mark.parametrize("known", [True, False], ids=["file", "no file"])
def test_unmodified_pages_within_a_run_are_no_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """For want of room runs are joined over them; what cannot be had is a gap."""

    def refuse(*_: object) -> int:
        raise PermissionError

    path = tmp_path / "file"
    content = bytearray(random.Random(1).randbytes(256 * PAGE_SIZE))
    path.write_bytes(content)
    with path.open("rb") as file:
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        memory = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, protection)
    assert memory[:] == content  # present then; but the second half again is not
    memory.madvise(mmap.MADV_DONTNEED, len(content) // 2, len(content) // 2)
    for at in range(0, len(content), 2 * PAGE_SIZE):
        content[at] ^= 1
        memory[at] = content[at]
    address = address_of(memory)
    ctypes.CDLL(None).mprotect(
        ctypes.c_void_p(address), ctypes.c_size_t(len(content)), mmap.PROT_READ
    )
    if not known:
        monkeypatch.setattr(LiveProcess, "open_mapped", refuse)
    with LiveProcess(os.getpid()) as process:
        survey = Survey(process, Preset.DEBUGGER)
        survey.slices = [
            slices if region.start == address else []
            for region, slices in zip(survey.regions, survey.slices, strict=True)
        ]
        assert len(list(itertools.chain(*survey.runs()))) == 128
        monkeypatch.setattr("fastdump.survey._MAX_RUNS", 0)
        (run,) = itertools.chain(*survey.runs())
        copier = Copier(process.memory, len(content))
        view, tally = copier.fill([run])
        survey.close()
    for gap in copier.gaps:
        content[gap.start - address : gap.end - address] = bytes(gap.end - gap.start)
    assert {gap.reason for gap in copier.gaps} == (set() if known else {"file not readable"})
    assert view == content[: run.length]
    assert tally.read == 192 * PAGE_SIZE  # modified ones, and the others of the first half


# ---- ELF cores.


def _stderr_and_output(*command: str | Path, **options: Any) -> tuple[str, str]:
    """Run a foreign tool, which must succeed; its standard error and output."""
    environment = {**os.environ, "LC_ALL": "C", "DEBUGINFOD_URLS": ""}
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment,
        timeout=120,
        check=True,
        **options,
    )
    return os.fsdecode(result.stderr), os.fsdecode(result.stdout)


@pytest.mark.parametrize("options", [(), ("--all",)], ids=" ".join)
def test_readelf_has_nothing_to_complain_of(
    target: targets.Target, dump_of: Any, options: tuple[str, ...]
) -> None:
    core = dump_of(target, "core", *options).path
    complaints, output = _stderr_and_output("readelf", "-aW", core)
    assert complaints == ""
    assert "arning" not in output
    assert "CORE (Core file)" in output
    assert "NT_PRPSINFO" in output
    assert ".note.fastdump" in output


def test_eu_readelf_has_nothing_to_complain_of(target: targets.Target, dump_of: Any) -> None:
    eu_readelf = program("eu-readelf")
    complaints, output = _stderr_and_output(eu_readelf, "-a", dump_of(target, "core").path)
    assert complaints == ""
    assert "CORE (Core file)" in output


def test_eu_readelf_finds_the_notes_of_the_process(target: targets.Target, dump_of: Any) -> None:
    eu_readelf = program("eu-readelf")
    _, output = _stderr_and_output(eu_readelf, "-n", dump_of(target, "core").path)
    assert f"pid: {target.pid}" in output  # of NT_PRPSINFO
    assert "PRSTATUS" not in output  # not the manifest under a wrong name


@pytest.mark.parametrize("options", [(), ("--all",)], ids=" ".join)
def test_segments_ascend_and_cover_each_line_of_maps_once(
    target: targets.Target, dump_of: Any, options: tuple[str, ...]
) -> None:
    segments = load_segments(dump_of(target, "core", *options).path)
    letters = ((4, "r"), (2, "w"), (1, "x"))
    left = iter(segments)
    file_offset = segments[0]["p_offset"]
    for region in regions_of(target.pid):
        at = region.start
        while at < region.end:
            segment = next(left)
            assert segment["p_vaddr"] == at
            assert segment["p_filesz"] in (0, segment["p_memsz"])
            assert segment["p_offset"] == file_offset
            assert segment["p_offset"] % PAGE_SIZE == 0
            perms = "".join(c if segment["p_flags"] & bit else "-" for bit, c in letters)
            assert perms == region.perms[:3]
            at += segment["p_memsz"]
            file_offset += segment["p_filesz"]
        assert at == region.end
    assert next(left, None) is None


def _notes(core: Path) -> dict[str, Any]:
    with open(core, "rb") as file:
        (segment,) = ELFFile(file).iter_segments("PT_NOTE")
        return {note["n_type"]: note["n_desc"] for note in segment.iter_notes()}


def test_prpsinfo_is_what_proc_says(target: targets.Target, dump_of: Any) -> None:
    info = _notes(dump_of(target, "core").path)["NT_PRPSINFO"]
    proc = Path(f"/proc/{target.pid}")
    stat = (proc / "stat").read_text().rpartition(")")[2].split()
    status = dict(
        line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line
    )
    assert info["pr_sname"] == stat[0].encode() == b"T"
    assert info["pr_state"] == "RSDTZW".index("T")
    assert info["pr_zomb"] == 0
    assert info["pr_pid"] == target.pid
    assert info["pr_ppid"] == os.getpid()
    assert [info["pr_pgrp"], info["pr_sid"]] == [int(stat[2]), int(stat[3])]
    assert info["pr_nice"] == int(stat[16])
    assert info["pr_flag"] == int(stat[6])
    assert info["pr_uid"] == int(status["Uid"].split()[0])
    assert info["pr_gid"] == int(status["Gid"].split()[0])
    assert info["pr_fname"].rstrip(b"\0") == (proc / "comm").read_bytes().rstrip(b"\n")
    arguments = (proc / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
    assert info["pr_psargs"].rstrip(b"\0") == arguments[:79]


def test_auxv_is_that_of_proc(target: targets.Target, dump_of: Any) -> None:
    auxv = _notes(dump_of(target, "core").path)["NT_AUXV"]
    text = auxv.encode("latin-1") if isinstance(auxv, str) else auxv
    assert text == Path(f"/proc/{target.pid}/auxv").read_bytes()


def _mapped_files(core: Path) -> list[tuple[int, int, int, bytes]]:
    """NT_FILE: start, end, offset in bytes, name."""
    note = _notes(core)["NT_FILE"]
    entries, names = note["Elf_Nt_File_Entry"], note["filename"]
    assert note["num_map_entries"] == len(entries) == len(names)
    return [
        (e["vm_start"], e["vm_end"], e["page_offset"] * note["page_size"], name)
        for e, name in zip(entries, names, strict=True)
    ]


def _real_name(pid: int, region: Region) -> bytes:
    """The kernel's own name of a mapped file, without the escapes of maps."""
    return os.readlink(f"/proc/{pid}/map_files/{region.start:x}-{region.end:x}".encode())


# The kernel writes a newline as "\012" and leaves a backslash alone: maps cannot tell them apart.
AMBIGUOUS = b"back\\012slash"


def test_nt_file_has_each_mapped_file_by_its_real_name(
    target: targets.Target, dump_of: Any
) -> None:
    listed = _mapped_files(dump_of(target, "core").path)
    real = [
        (r.start, r.end, r.offset, _real_name(target.pid, r))
        for r in regions_of(target.pid)
        if r.inode
    ]
    plain = [entry for entry in real if not entry[3].endswith(AMBIGUOUS)]
    assert set(plain) <= set(listed)
    assert [entry[:3] for entry in sorted(listed)] == [entry[:3] for entry in real]
    executable = os.readlink(f"/proc/{target.pid}/exe".encode())
    assert listed[0][3] == executable  # lldb takes the first for the program


def test_nt_file_names_of_the_awkward_target(awkward: targets.Target, dump_of: Any) -> None:
    names = {name for *_, name in _mapped_files(dump_of(awkward, "core").path)}
    for region in awkward.truth["regions"]:
        if region["path"] and not region["path"].endswith(os.fsdecode(AMBIGUOUS)):
            path = os.fsencode(region["path"])
            assert path in names or path + b" (deleted)" in names


def test_a_backslash_in_a_name_is_no_newline(awkward: targets.Target, dump_of: Any) -> None:
    names = {name for *_, name in _mapped_files(dump_of(awkward, "core").path)}
    assert os.fsencode(awkward.region("backslash 012")["path"]) in names


# ---- gdb.

NO_REGISTERS = "warning: Couldn't find general-purpose registers in core file."


def gdb(target: targets.Target, core: Path, *commands: str) -> tuple[list[str], str]:
    """What gdb warns of when it opens a core, and what it prints.

    The awkward target's memfd library calls itself /proc/self/fd/3, which gdb takes for a pipe of
    its own: so gdb gets the library there.
    """
    library = Path(os.devnull)
    for region in regions_of(target.pid):
        if region.path.startswith("/memfd:library"):
            library = Path(f"/proc/{target.pid}/map_files/{region.start:x}-{region.end:x}")
            break
    arguments = [word for command in commands for word in ("-ex", command)]
    warnings, output = _stderr_and_output(
        *("sh", "-c", 'exec 3<"$1"; shift; exec gdb -nx -batch "$@"', "sh", library),
        *(str(target.process.args[0]), core),  # type: ignore[index]
        *arguments,
    )
    return [text for text in warnings.split("\n\n") if text.strip()], output


def words_of(gdb_output: str) -> dict[int, bytes]:
    """The words that ``x/8gx`` printed, as bytes, by the first address of each line."""
    lines = re.findall(r"^(0x[0-9a-f]+)[^:\n]*:((?:\t0x[0-9a-f]{16})+)$", gdb_output, re.MULTILINE)
    return {
        int(address, 16): b"".join(
            int(word, 16).to_bytes(8, sys.byteorder) for word in words.split("\t")[1:]
        )
        for address, words in lines
    }


def examined(gdb_output: str, address: int) -> bytes:
    """The 64 bytes that ``x/8gx ADDRESS`` printed."""
    words = words_of(gdb_output)
    return b"".join(words.get(address + at, b"") for at in range(0, 64, 16))


def test_gdb_opens_a_core_without_a_warning_but_for_the_registers(
    threads: targets.Target, dump_of: Any
) -> None:
    local = threads.truth["threads"][3]
    warnings, output = gdb(
        threads,
        dump_of(threads, "core").path,
        "info sharedlibrary",
        "info proc mappings",
        f"x/8gx {local['local']}",
    )
    assert {text.strip() for text in warnings} == {NO_REGISTERS}
    assert re.search(r"Yes .*libc\.so\.6", output)
    for region in regions_of(threads.pid):
        if region.inode:
            assert re.search(rf"0x{region.start:x} .*{re.escape(region.path)}", output)
    assert examined(output, local["local"]) == targets.pattern(local["local"], 64, local["seed"])


def test_gdb_misses_only_files_that_are_not_there(awkward: targets.Target, dump_of: Any) -> None:
    warnings, output = gdb(awkward, dump_of(awkward, "core").path, "info sharedlibrary")
    form = r"warning: Can't open file (.*) during file-backed mapping note processing"
    for text in warnings:
        missing = re.fullmatch(form, text.strip(), re.DOTALL)
        if missing:
            assert not os.path.exists(missing[1])
        elif "Could not load shared library symbols" in text:
            assert "deleted-library.so" in text
        else:
            assert text.strip() == NO_REGISTERS
    assert re.search(r"Yes .*plugin\.bin", output)
    assert re.search(r"Yes .*libc\.so\.6", output)
    assert re.search(r"No .*deleted-library\.so", output)


@pytest.mark.parametrize("options", [(), ("--all",)], ids=" ".join)
def test_gdb_shows_the_bytes_of_the_target(
    awkward: targets.Target, dump_of: Any, options: tuple[str, ...]
) -> None:
    found = dump_of(awkward, "core", *options)
    samples: dict[int, bytes] = {}
    for region in awkward.truth["regions"]:
        if found.region_at(region["start"])["dumped"] == "none":
            continue
        for start, end, kind, content in known_pieces(region):
            inside = (end - start) // 2 & -8
            if kind in ("pattern", "file", "elsewhere") and end - start - inside >= 64:
                samples[start + inside] = content[inside : inside + 64]
    assert len(samples) > 40
    _, output = gdb(awkward, found.path, *(f"x/8gx {address:#x}" for address in samples))
    wrong = [hex(at) for at, content in samples.items() if examined(output, at) != content]
    assert not wrong


# ---- LZ4.


def _frames(data: bytes) -> Iterator[tuple[int, int, int]]:
    """``start, end, content size`` of each LZ4 frame; LZ4 Frame Format Description 1.6.4."""
    at = 0
    while struct.unpack_from("<I", data, at)[0] == 0x184D2204:
        start, flags = at, data[at + 4]
        version, independent, block_checksum = flags >> 6, flags >> 5 & 1, flags >> 4 & 1
        assert version == 1
        assert independent
        assert flags >> 3 & 1, "no content size"
        assert flags >> 2 & 1, "no content checksum"
        assert not flags & 3, "reserved bit, or a dictionary"
        (content_size,) = struct.unpack_from("<Q", data, at + 6)
        at += 15
        while size := struct.unpack_from("<I", data, at)[0] & 0x7FFFFFFF:
            at += 4 + size + 4 * block_checksum
        at += 8  # EndMark, content checksum
        yield start, at, content_size


def test_lz4_accepts_the_dump(target: targets.Target, dump_of: Any) -> None:
    subprocess.run(["lz4", "-tq", dump_of(target, "lz4").path], check=True)


@pytest.mark.parametrize("options", [(), ("--all",)], ids=" ".join)
def test_lz4_unpacks_to_the_very_bytes_of_the_core(
    target: targets.Target, dump_of: Any, options: tuple[str, ...]
) -> None:
    packed, core = (dump_of(target, name, *options) for name in ("lz4", "core"))
    assert packed.core.read_bytes() == core.path.read_bytes()
    assert packed.disk_usage < core.report["bytes"]["selected"]


@pytest.mark.parametrize("format", ["core", "lz4"])
def test_a_pipe_gets_the_bytes_that_a_file_gets(
    target: targets.Target, dump_of: Any, format: str
) -> None:
    result = subprocess.run(
        [*DUMP, str(target.pid), "--format", format, "--output", "-", "--json", "--pause", "none"],
        capture_output=True,
        env={**os.environ, **EPOCH},
        check=True,
        timeout=120,
    )
    assert result.stdout == dump_of(target, format).path.read_bytes()
    assert json.loads(result.stderr)["exit_code"] == 0


def test_frames_are_independent_and_the_seek_table_finds_each(
    target: targets.Target, dump_of: Any
) -> None:
    found = dump_of(target, "lz4")
    data = found.path.read_bytes()
    count, descriptor, magic = struct.unpack("<IBI", data[-9:])
    assert magic == 0x8F92EAB1
    assert descriptor == 0  # no checksums: each frame has its own
    table_at = len(data) - 9 - 8 * count - 8
    assert struct.unpack_from("<II", data, table_at) == (0x184D2A5E, 8 * count + 9)
    entries = list(struct.iter_unpack("<II", data[table_at + 8 : -9]))

    frames = list(_frames(data))
    assert [(end - start, size) for start, end, size in frames] == entries
    assert max(size for *_, size in frames) <= 4 << 20
    core = found.core.read_bytes()
    at = 0
    for start, end, size in frames:
        assert lz4.frame.decompress(data[start:end]) == core[at : at + size]
        at += size
    assert at == len(core)

    manifest_at = frames[-1][1]
    kind, length = struct.unpack_from("<II", data, manifest_at)
    assert kind == 0x184D2A5D
    assert manifest_at + 8 + length == table_at


def test_the_manifest_lies_in_a_skippable_frame_and_in_a_note(
    target: targets.Target, dump_of: Any
) -> None:
    found = dump_of(target, "lz4")
    data = found.path.read_bytes()
    manifest_at = list(_frames(data))[-1][1]
    (length,) = struct.unpack_from("<I", data, manifest_at + 4)
    payload = data[manifest_at + 8 : manifest_at + 8 + length]
    assert payload[:8] == b"FASTDUMP"
    assert json.loads(lz4.frame.decompress(payload[8:])) == found.manifest
    assert found.manifest == dump_of(target, "core").manifest
    assert found.manifest["time"] == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize("level", ["9", "-5"])
@pytest.mark.parametrize("format", ["lz4", "raw-lz4"])
def test_every_level_unpacks_to_the_same_bytes(
    awkward: targets.Target, tmp_path: Path, dump_of: Any, format: str, level: str
) -> None:
    usual = dump_of(awkward, format)
    found = run_well(awkward.pid, format, tmp_path, f"--level={level}")
    if format == "lz4":
        assert found.core.read_bytes() == usual.core.read_bytes()
    for extent in usual.extents:
        span = extent.start, extent.end - extent.start
        assert found.read(*span) == usual.read(*span)
    # Not the blocks of a disk, which may be as many.
    files = [[d.path] if format == "lz4" else d.path.glob("*.lz4") for d in (found, usual)]
    sizes = [sum(file.stat().st_size for file in those) for those in files]
    assert sizes[0] != sizes[1]
    assert (sizes[0] < sizes[1]) == (level == "9")


# ---- Folders.


@pytest.mark.parametrize("options", [(), ("--all",)], ids=" ".join)
def test_raw_lz4_unpacks_to_raw_and_misses_nothing(
    target: targets.Target, dump_of: Any, options: tuple[str, ...]
) -> None:
    raw, packed = (dump_of(target, name, *options) for name in ("raw", "raw-lz4"))
    for region in packed.regions:
        start = region["start"]
        (plain,) = [f["name"] for f in raw.region_at(start)["files"]] or [None]
        if plain is None:
            assert not region["files"]
            continue
        rest = bytearray((raw.path / plain).read_bytes())
        assert len(rest) == region["end"] - start
        for file in region["files"]:
            path = packed.path / file["name"]
            low, high = (int(file[key], 16) - start for key in ("start", "end"))
            assert path.name == f"{target.pid}_mem_{start + low:x}.bin.lz4"
            unpacked = subprocess.run(["lz4", "-dc", path], capture_output=True, check=True).stdout
            assert unpacked == rest[low:high]
            assert all(size <= 4 << 20 for *_, size in _frames(path.read_bytes() + bytes(4)))
            rest[low:high] = bytes(high - low)
        assert not rest.strip(b"\0"), f"data of {start:#x} is missing"


@pytest.mark.parametrize("format", ["raw", "raw-lz4"])
def test_the_manifest_lists_each_file_of_a_folder(
    target: targets.Target, dump_of: Any, format: str
) -> None:
    found = dump_of(target, format)
    listed = [file["name"] for region in found.regions for file in region["files"]]
    assert sorted([*listed, "manifest.json"]) == sorted(os.listdir(found.path))
    for region in found.regions:
        if format == "raw" and region["dumped"] != "none":
            assert [f["name"] for f in region["files"]] == [
                f"{target.pid}_mem_{region['start']:x}.bin"
            ]


# ---- userfaultfd.


@pytest.mark.parametrize("options", [(), ("--all",)], ids=" ".join)
def test_missing_userfaultfd_pages_never_block(tmp_path: Path, options: tuple[str, ...]) -> None:
    with targets.start("awkward", tmp_path, "uffd") as target:
        if target.truth["userfaultfd"] != "block":
            pytest.skip("userfaultfd is not permitted")
        target.stop()
        for format in FORMATS:
            output = tmp_path / f"dump.{format}"
            command = [*DUMP, str(target.pid), "-qf", format, "-o", str(output), *options]
            result = subprocess.run(command, capture_output=True, timeout=60)
            assert (result.returncode, result.stderr) == (0, b"")
            if format == "null":
                continue
            found = Dump(format, output, 0, {}, "")
            for start, end, kind, content in known_pieces(target.region("userfaultfd")):
                assert found.read(start, end - start) == content, kind
