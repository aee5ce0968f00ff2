"""Damaged and hostile dumps: a clear refusal, or what is right with gaps; nothing else.

Each format is mutated at random. A child process reads the results, so that a crash, a hang or
too much memory is seen as what it is. What LZ4 frames give must be right even then: they have
checksums.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.frame
import pytest

import targets
from conftest import program
from fastdump import elf, frames, manifest, raw_source
from fastdump.description import describe
from fastdump.dumped import Dumped
from fastdump.errors import CorruptDump, UsageError
from fastdump.extract import extract
from fastdump.gaps import MOST_GAPS
from fastdump.matches import strings
from fastdump.region import Range
from fastdump.selection import Preset
from fastdump.sources import open_source
from fastdump.verify import verify
from test_formats import run_well
from test_sources import Image, elf_core, walked

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20241128"))
MOST_MEMORY = 300 << 20
HUNG = 30  # seconds; a reading takes milliseconds
FORMATS = ("core", "gcore", "lz4", "raw", "raw-lz4", "dd")

Seeds = dict[str, Path]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Seeds:
    """A small dump of each format, of one stopped process."""
    folder = tmp_path_factory.mktemp("seeds")
    found: Seeds = {}
    with targets.start("threads", 2) as target:
        target.stop()
        for format in ("core", "lz4", "raw", "raw-lz4"):
            found[format] = run_well(target.pid, format, folder).path
        found["dd"] = folder / "dd"
        found["dd"].mkdir()
        for file in found["raw"].iterdir():
            if file.suffix == ".bin":
                shutil.copy(file, found["dd"])
        if shutil.which("gcore"):
            prefix = folder / "gcore"
            subprocess.run(["gcore", "-o", prefix, str(target.pid)], check=True,
                           capture_output=True, stdin=subprocess.DEVNULL, timeout=60)  # fmt: skip
            found["gcore"] = folder / f"gcore.{target.pid}"
    return found


# ---- Mutations.

NUMBERS = [0, 1, 7, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 63, (1 << 64) - 1]
NUMBERS += [(1 << 63) - 1, (1 << 64) - 4096, 1 << 48]


def any_bytes(data: bytearray, generator: random.Random) -> None:
    """Bits, bytes, a cut, an insertion, a piece moved to another place."""
    at = generator.randrange(len(data))
    if generator.random() < 0.4:  # where headers are
        at = generator.choice((at % 4096, len(data) - 1 - at % 4096)) % len(data)
    length = min(generator.choice((1, 4, 8, 100, 5000)), len(data) - at)
    match generator.randrange(7):
        case 0 | 1:
            data[at] ^= 1 << generator.randrange(8)
        case 2:
            data[at : at + length] = generator.randbytes(length)
        case 3:
            data[at : at + length] = bytes([generator.choice((0, 255))]) * length
        case 4:
            del data[at:]
        case 5:
            data[at:at] = generator.randbytes(length)
        case 6:
            other = generator.randrange(len(data))
            data[at : at + length] = data[other : other + length]


def any_number(data: bytearray, fields: list[tuple[int, int]], generator: random.Random) -> None:
    """One header field, which is so many bytes at an offset, gets a number that it should not."""
    at, size = generator.choice(fields)
    old = int.from_bytes(data[at : at + size], "little")
    near = old + generator.choice((-1, 1, -4096, 4096, len(data)))
    new = generator.choice([*NUMBERS, near, near, near, len(data)])
    data[at : at + size] = (new % (1 << 8 * size)).to_bytes(size, "little")


def elf_fields(core: bytes) -> list[tuple[int, int]]:
    """Where the headers of a core have numbers."""
    found = [(16, 2), (18, 2), (32, 8), (40, 8), (54, 2), (56, 2), (58, 2), (60, 2), (4, 1), (5, 1)]
    phoff, shoff = struct.unpack_from("<QQ", core, 32)
    phnum, _, shnum, _ = struct.unpack_from("<4H", core, 56)
    for at in range(phoff, phoff + phnum * 56, 56):
        found += [(at, 4), *((at + 8 * i, 8) for i in (1, 2, 4, 5))]
        if struct.unpack_from("<I", core, at)[0] == 4:
            found += note_fields(core, *struct.unpack_from("<Q16xQ", core, at + 8)) * 3
    for at in range(shoff, shoff + shnum * 64, 64):
        found += [(at + 4, 4), (at + 24, 8), (at + 32, 8), (at + 44, 4)]
    return found


def note_fields(core: bytes, at: int, size: int) -> list[tuple[int, int]]:
    found = []
    end = at + size
    while at < end:
        namesz, descsz, n_type = struct.unpack_from("<III", core, at)
        found += [(at, 4), (at + 4, 4), (at + 8, 4)]
        desc = at + 12 + -(-namesz // 4) * 4
        if n_type in (6, 0x46494C45):  # words: NT_AUXV, NT_FILE
            found += [(desc + 8 * i, 8) for i in range(min(descsz // 8, 30))]
        at = desc + -(-descsz // 4) * 4
    return found


def frame_fields(data: bytes) -> list[tuple[int, int]]:
    """Where the headers of LZ4 frames, and what follows them, have numbers."""
    found: list[tuple[int, int]] = []
    at = 0
    while at < len(data):
        (magic,) = struct.unpack_from("<I", data, at)
        found += [(at, 4), (at + 4, 4)]
        if magic != 0x184D2204:
            size = struct.unpack_from("<I", data, at + 4)[0]
            if magic == 0x184D2A5E:
                found += [(i, 4) for i in range(at + 8, at + 8 + size - 9, 4)]
                found += [(at + 8 + size - 9, 4), (at + 8 + size - 5, 1), (at + 8 + size - 4, 4)]
            at += 8 + size
            continue
        found += [(at + 6, 8), (at + 14, 1), (at + 15, 4)]
        at += 15
        while size := struct.unpack_from("<I", data, at)[0] & 0x7FFFFFFF:
            at += 4 + size
        at += 8
    return found


VALUES = [None, True, -1, 0, 1, 1 << 64, 1e999, float("nan"), "", "0x", "-0x1", "0x0", "0x1001"]
VALUES += [
    "0x" + "f" * 16,
    "0x1" + "0" * 16,
    "x" * 5000,
    "\0\x1b[31m",
    "\udcff",
    "\ud800",
    1.5,
    [],
    {},
    [[]],
]
VALUES += [{"": 0}, "../../etc/passwd", "/etc/passwd", "manifest.json", "a/1_mem_1000.bin", [1, 2]]


def any_json(text: bytes, generator: random.Random) -> bytes:
    """A value of it replaced, removed, repeated, or put elsewhere."""
    whole = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def visit(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], (dict, list)):
                visit(value[key])

    visit(whole)
    for _ in range(generator.choice((1, 1, 3))):
        # Rare keys as often as those of every region.
        names = sorted({str(key) for _, key in places})
        name = generator.choice(names)
        holder, key = generator.choice([place for place in places if str(place[1]) == name])
        if isinstance(holder, dict):
            if key not in holder:
                continue
        elif key >= len(holder):
            continue
        match generator.randrange(6):
            case 0:
                del holder[key]
            case 1:
                other, other_key = generator.choice(places)
                try:
                    holder[key] = json.loads(json.dumps(other[other_key]))
                except (KeyError, IndexError):
                    continue
            case 2 if isinstance(holder, list):
                holder.append(holder[key])
            case _:
                holder[key] = generator.choice(VALUES)
    return json.dumps(whole).encode()


def mutated_core(core: bytes, generator: random.Random) -> bytes:
    data = bytearray(core)
    for _ in range(generator.choice((1, 1, 1, 2, 5))):
        if generator.random() < 0.6:
            any_number(data, elf_fields(core), generator)
            if len(data) < len(core):
                break
        else:
            any_bytes(data, generator)
            break
    if not data:
        data += b"\x7f"
    return bytes(data)


def packed(core: bytes, size: int = 1 << 16) -> bytes:
    """LZ4 frames, with size and checksum, without a seek table."""
    return b"".join(
        lz4.frame.compress(core[at : at + size], content_checksum=True, block_linked=False)
        for at in range(0, len(core), size)
    )


class Mutator:
    """Makes mutants of one format at one path.

    Attributes:
        path: Of the mutant.
        checked: Whether all its bytes have checksums that the mutation has not made anew.
    """

    def __init__(self, format: str, seed: Path, folder: Path) -> None:
        self.format, self.seed = format, seed
        self.path = folder / f"mutant.{format}"
        self.checked = False
        if seed.is_dir():
            shutil.copytree(seed, self.path)
            self.files = sorted(p.name for p in seed.iterdir())
            self.changed: Path | None = None
        else:
            self.data = seed.read_bytes()
            if format == "lz4":
                self.core = lz4.frame.decompress(self.data)

    def make(self, generator: random.Random) -> None:
        if self.seed.is_dir():
            self._make_folder(generator)
            return
        self.checked = False
        if self.format != "lz4":
            data = mutated_core(self.data, generator)
        elif generator.random() < 0.2:
            data = packed(mutated_core(self.core, generator))
        else:
            self.checked = True
            mutant = bytearray(self.data)
            if generator.random() < 0.4:
                any_number(mutant, frame_fields(self.data), generator)
            else:
                any_bytes(mutant, generator)
            data = bytes(mutant)
        self.path.write_bytes(data)

    def _make_folder(self, generator: random.Random) -> None:
        if self.changed:
            self.changed.unlink(missing_ok=True)
            shutil.copy(self.seed / self.changed.name, self.changed)
        name = generator.choice(self.files)
        if generator.random() < 0.6 and "manifest.json" in self.files:
            name = "manifest.json"
        self.changed = file = self.path / name
        self.checked = name.endswith(".lz4")
        data = (self.seed / name).read_bytes()
        if name == "manifest.json" and generator.random() < 0.8:
            file.write_bytes(any_json(data, generator))
        elif generator.random() < 0.1:
            file.unlink()
        else:
            mutant = bytearray(data)
            if self.checked and generator.random() < 0.4:
                any_number(mutant, frame_fields(data), generator)
            else:
                any_bytes(mutant, generator)
            file.write_bytes(mutant)


# ---- What becomes of them.


def image_of(path: Path) -> Image:
    with open_source(str(path)) as source:
        return Image(walked(source, [(r.start, r.end) for r in source.regions]))


def use(path: Path, *, thorough: bool, original: Image | None = None) -> str:
    """Read a dump in all ways; what became of it. All that is there must be *original*."""
    try:
        with open_source(str(path)) as source:
            assert isinstance(source, Dumped)
            at = 0
            for region in source.regions:
                assert at <= region.start < region.end <= 1 << 64
                at = region.end
            # A range of terabytes of zeros is one step.
            small = [(r.start, min(r.end, r.start + (1 << 20))) for r in source.regions]
            for part in source.walk([Range(r.start, r.end) for r in source.regions]):
                del part
            lost = False
            for area in walked(source, small[:100]):
                truth = original.of(area.start, area.end) if original else area
                lost = lost or area.mask != truth.mask
                for run in re.finditer(b"[^\0]+", area.mask):
                    inside = slice(*run.span())
                    where = hex(area.start + run.start())
                    assert truth.mask[inside] == run[0], f"{where}: a gap has bytes"
                    assert truth.data[inside] == area.data[inside], f"{where}: wrong bytes"
            json.dumps(describe(source), default=str)
            with contextlib.closing(source.place(preset=Preset.ALL)) as place:
                del place
            if thorough:
                verify(source, threads=1)
                for match in strings(source, preset=Preset.ALL):
                    del match
            return "gaps" if lost else "whole"
    except CorruptDump:
        return "corrupt"
    except UsageError:
        return "usage"


def in_child(work: Callable[[Callable[[str], None]], None]) -> list[str]:
    """Run *work* in a forked child with little memory; the lines that it says.

    Raises:
        AssertionError: It failed, crashed, hung, or took too much memory; says what it did last.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest-timeout's waits for C to return
            os.close(reader)
            with os.fdopen(writer, "w", buffering=1) as file:
                try:
                    work(lambda line: print(line, file=file))
                    code = 0
                except BaseException:
                    traceback.print_exc(file=file)
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as file:
        lines = file.read().splitlines()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, f"exit {code}: " + "\n".join(lines[-30:])
    return lines


def own_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def mutate(format: str, seed: Path, folder: Path, count: int, first: int) -> dict[str, int]:
    """Read *count* mutants; how many became what."""

    def work(say: Callable[[str], None]) -> None:
        mutator = Mutator(format, seed, folder)
        original = image_of(seed)
        assert use(seed, thorough=True, original=original) == "whole"
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before = own_peak()
        for number in range(first, first + count):
            say(f"# FASTDUMP_TEST_SEED={SEED} mutant {number}")
            generator = random.Random(f"{SEED} {format} {number}")
            signal.alarm(HUNG)
            mutator.make(generator)
            checked = original if mutator.checked else None
            say(use(mutator.path, thorough=number % 5 == 0, original=checked))
            assert own_peak() - before < MOST_MEMORY
            signal.alarm(0)

    found: dict[str, int] = {}
    for line in in_child(work):
        if not line.startswith("#"):
            found[line] = found.get(line, 0) + 1
    assert sum(found.values()) == count
    # Files that dd has written say nothing of themselves that could be wrong.
    assert found.get("corrupt") or format == "dd"
    assert found.get("whole") or found.get("gaps")
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_two_hundred_mutants(seeds: Seeds, tmp_path: Path, format: str) -> None:
    if format == "gcore":
        program("gcore")
    print(mutate(format, seeds[format], tmp_path, 200, 0))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("format", FORMATS)
def test_ten_thousand_mutants(seeds: Seeds, tmp_path: Path, format: str) -> None:
    if format == "gcore":
        program("gcore")
    print(mutate(format, seeds[format], tmp_path, 10_000, 0))


def test_the_commands_end_with_a_line_and_an_exit_code(seeds: Seeds, tmp_path: Path) -> None:
    print("FASTDUMP_TEST_SEED:", SEED)
    codes = set()
    for format in sorted(seeds):
        mutator = Mutator(format, seeds[format], tmp_path)
        for number in range(9):
            mutator.make(random.Random(f"{SEED} {format} {number}"))
            command = (
                ("info", "--verify"),
                ("strings", "-n", "8", "--all"),
                ("extract", "-q", "--force", "-f", "core", "-o", tmp_path / "extracted"),
            )[number % 3]
            result = subprocess.run(
                [sys.executable, "-m", "fastdump", *command, mutator.path],
                capture_output=True,
                timeout=HUNG,
            )
            assert result.returncode in (0, 2, 3, 6), (format, number, result.stderr)
            assert b"Traceback" not in result.stderr
            assert bool(result.stderr) or result.returncode in (0, 6)
            codes.add(result.returncode)
    assert len(codes) > 1


# ---- Made to harm.


def refused(path: Path, match: str) -> None:
    """It cannot be opened, in little memory."""

    def work(say: Callable[[str], None]) -> None:
        before = own_peak()
        signal.alarm(HUNG)
        with pytest.raises(CorruptDump, match=match):
            open_source(str(path))
        assert own_peak() - before < MOST_MEMORY

    in_child(work)


def readable(path: Path, **options: Any) -> None:
    """It can be read, in little memory and time."""

    def work(say: Callable[[str], None]) -> None:
        before = own_peak()
        signal.alarm(HUNG)
        result = use(path, **options)
        assert result in ("whole", "gaps"), result
        assert own_peak() - before < MOST_MEMORY

    in_child(work)


def with_manifest(dump: bytes, text: bytes) -> bytes:
    """A ``.core.lz4`` with another manifest; all checksums hold."""
    table_at = len(dump) - 17 - 8 * struct.unpack_from("<I", dump, len(dump) - 9)[0]
    table = dump[table_at:]
    entries = table[8:-9]
    at = sum(size for size, _ in struct.iter_unpack("<II", entries))
    payload = b"FASTDUMP" + lz4.frame.compress(text, content_checksum=True, store_size=True)
    payload += struct.pack("<I", zlib.crc32(entries))
    return dump[:at] + struct.pack("<II", 0x184D2A5D, len(payload)) + payload + table


@pytest.mark.parametrize(
    "bomb",
    [
        lambda: b'{"schema": 1, "regions": [' + b"{}," * (20 << 20) + b"{}]}",
        lambda: b'{"schema": 1, "x": ' + b"[" * (60 << 20),
        lambda: b'{"schema": 1, "x": ' + b'{"":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ],
    ids=["many", "unclosed", "deep"],
)
def test_json_bombs(seeds: Seeds, tmp_path: Path, bomb: Callable[[], bytes]) -> None:
    text = bomb()
    path = tmp_path / "bomb.core.lz4"
    path.write_bytes(with_manifest(seeds["lz4"].read_bytes(), text))
    assert path.stat().st_size < 1 << 20
    refused(path, "manifest")
    folder = shutil.copytree(seeds["raw"], tmp_path / "bomb.raw")
    (folder / "manifest.json").write_bytes(text)
    refused(folder, "manifest")


def test_a_manifest_that_is_too_long_is_not_left_out(seeds: Seeds, tmp_path: Path) -> None:
    """Without it, gaps would be zeros."""
    path = tmp_path / "long.core.lz4"
    path.write_bytes(with_manifest(seeds["lz4"].read_bytes(), b" " * (129 << 20)))
    refused(path, "too long")
    path = tmp_path / "long.core"
    shutil.copy(seeds["core"], path)
    with path.open("r+b") as file:
        file.seek(40)
        (shoff,) = struct.unpack("<Q", file.read(8))
        file.seek(shoff + 64 + 24)  # sh_offset of .note.fastdump
        at, size = struct.unpack("<QQ", file.read(16))
        file.seek(shoff + 64 + 32)
        file.write(struct.pack("<Q", size + (129 << 20)))
        file.seek(at + 4)
        file.write(struct.pack("<I", size - 24 + (129 << 20)))
        file.truncate(at + size + (129 << 20))
    refused(path, "too long")


def test_the_longest_manifest_that_is_written_can_be_read(seeds: Seeds) -> None:
    """Of all mappings that search engines ask for, all dumped, and all gaps that there may be."""
    gap = {"start": hex(1 << 47), "end": hex(1 << 47), "reason": "swapped", "errno": 0}
    for format, most, indent in (
        ("core", elf._MOST_NOTE_BYTES, None),
        ("lz4", frames._MOST_MANIFEST, None),
        ("raw", raw_source._MOST_MANIFEST, 1),
    ):
        with open_source(str(seeds[format])) as source:
            assert isinstance(source, Dumped)
            assert source.manifest
            region = max(source.manifest.raw["regions"], key=lambda r: len(json.dumps(r)))
        size = marks = 0
        for item, count in ((region, 262_144), (gap, MOST_GAPS)):
            one, two = (
                json.dumps(
                    {"": [item] * n}, indent=indent, separators=None if indent else (",", ":")
                )
                for n in (1, 2)
            )
            size += (len(two) - len(one)) * count
            marks += sum(two.count(mark) - one.count(mark) for mark in ",:[{") * count
        assert size < most
        assert marks < manifest._MOST_MARKS


def test_a_manifest_that_is_put_back_is_read(seeds: Seeds, tmp_path: Path) -> None:
    """Or the bombs would be refused for another reason."""
    dump = seeds["lz4"].read_bytes()
    with open_source(str(seeds["lz4"])) as source:
        assert isinstance(source, Dumped)
        assert source.manifest
        raw = dict(source.manifest.raw)
    raw["tool"] = "another"
    path = tmp_path / "same.core.lz4"
    path.write_bytes(with_manifest(dump, json.dumps(raw).encode()))
    with open_source(str(path)) as source:
        assert describe(source)["tool"] == "another"
        assert not describe(source)["problems"]


def test_decompression_bombs(tmp_path: Path) -> None:
    """Frames that say little and hold much, or say much; and a gigabyte of segments."""
    core = elf_core([(0x1000, b"A" * 5000, 5000)])
    zeros = lz4.frame.compress(bytes(64 << 20), store_size=True, content_checksum=True)
    lying = bytearray(zeros)
    lying[6:14] = struct.pack("<Q", 4096)
    header = lying[4:14]
    lying[14] = xxhash32(bytes(header)) >> 8 & 0xFF
    path = tmp_path / "bomb.core.lz4"
    path.write_bytes(packed(core) + bytes(lying))
    readable(path, thorough=True)
    path.write_bytes(packed(core) + zeros)
    refused(path, "cannot be read at random")
    many = bytearray(elf_core([(0x1000 * i, b"", 0x1000) for i in range(3)]))
    many[56:58] = struct.pack("<H", 0xFFFF)
    many[40:48] = struct.pack("<Q", len(many))
    section = bytearray(64)
    section[44:48] = struct.pack("<I", 1 << 24)
    path.write_bytes(packed(bytes(many + section) + bytes(1 << 24)))
    refused(path, "segments")


def xxhash32(data: bytes) -> int:
    """XXH32 of less than 16 bytes, seed 0."""
    primes = 2654435761, 2246822519, 3266489917, 668265263, 374761393
    found = primes[4] + len(data)
    while len(data) >= 4:
        found = (found + int.from_bytes(data[:4], "little") * primes[2]) % 2**32
        found = (found << 17 | found >> 15) % 2**32 * primes[3] % 2**32
        data = data[4:]
    for byte in data:
        found = (found + byte * primes[4]) % 2**32
        found = (found << 11 | found >> 21) % 2**32 * primes[0] % 2**32
    found = (found ^ found >> 15) * primes[1] % 2**32
    found = (found ^ found >> 13) * primes[2] % 2**32
    return found ^ found >> 16


def elf_with(headers: list[tuple[int, int, int, int, int]], rest: bytes = b"") -> bytes:
    """A core of (type, offset, address, size in the file, size in memory), *rest* behind them."""
    empty = elf_core([(0, b"", 0)] * len(headers))
    core = bytearray(empty)
    for i, (p_type, offset, address, filesz, memsz) in enumerate(headers):
        struct.pack_into("<IIQQQQQQ", core, 64 + 56 * i, p_type, 6, offset, address, 0, filesz,
                         memsz, 1)  # fmt: skip
    return bytes(core) + rest


def test_notes_that_are_the_same_a_thousand_times(tmp_path: Path) -> None:
    note = struct.pack("<III", 5, 0, 1) + b"CORE\0\0\0\0"
    notes = note * 500_000
    at = 64 + 56 * 1001
    headers = [(4, at, 0, len(notes), 0)] * 1000 + [(1, at, 0x1000, 4096, 4096)]
    path = tmp_path / "notes.core"
    path.write_bytes(elf_with(headers, notes))
    readable(path, thorough=False)
    endless = struct.pack("<III", 0xFFFFFFF0, 0xFFFFFFFF, 1) * 100
    path.write_bytes(elf_with([(4, 64 + 56 * 2, 0, 1 << 63, 0), headers[-1]], endless))
    readable(path, thorough=False)


def test_mapped_files_that_are_too_many(tmp_path: Path) -> None:
    for count, page in ((2_000_000, 1), ((1 << 64) - 1, 1 << 63), (0, 0), (3, (1 << 64) - 1)):
        words = struct.pack("<QQ", count, page) + struct.pack("<QQQ", 1, 2, (1 << 64) - 1) * 3
        desc = words + bytes(60 << 20 if count == 2_000_000 else 10)
        note = struct.pack("<III", 5, len(desc), 0x46494C45) + b"CORE\0\0\0\0" + desc
        path = tmp_path / "files.core"
        note += bytes(-len(note) % 4)
        headers = [(4, 64 + 56 * 2, 0, len(note), 0), (1, 64, 0x1000, 100, 4096)]
        path.write_bytes(elf_with(headers, note))
        readable(path, thorough=False)
        with open_source(str(path)) as source:
            broken = count not in (0, 3)
            assert ("NT_FILE" in str(describe(source)["problems"])) == broken


def test_segments_that_overlap_are_read_once(tmp_path: Path) -> None:
    rest = b"a" * 4096 + b"b" * 4096
    at = 64 + 56 * 4
    headers = [
        (1, at, 0x2000, 4096, 4096),
        (1, at + 4096, 0x1800, 4096, 4096),
        (1, at, 0x1000, 0x1000, 0x1000),
        (1, at, 0x1900, 1, 0x300),
    ]
    path = tmp_path / "overlap.core"
    path.write_bytes(elf_with(headers, rest))
    with open_source(str(path)) as source:
        areas = walked(source, [(0x1000, 0x3000)])
        assert areas[0].data == b"a" * 0x1000 + b"b" * 0x800 + b"a" * 0x800
        assert "overlap" in str(describe(source)["problems"])
    readable(path, thorough=True)


@pytest.mark.parametrize("phnum", [0, 1, 65_535, 65_536, (1 << 32) - 1])
@pytest.mark.parametrize("shoff", [0, 1, 64, 120, 1 << 63, (1 << 64) - 1])
def test_extended_numbers_of_segments(tmp_path: Path, shoff: int, phnum: int) -> None:
    core = bytearray(elf_core([(0x1000, b"x" * 4096, 4096)]) + bytes(64))
    core[56:58] = struct.pack("<H", 0xFFFF)
    core[40:48] = struct.pack("<Q", shoff)
    core[-20:-16] = struct.pack("<I", phnum)
    if shoff == 1:
        core[40:48] = struct.pack("<Q", len(core) - 64)
    path = tmp_path / "xnum.core"
    path.write_bytes(core)
    if shoff == 1 and phnum in (0, 1, 65_535, 65_536):
        readable(path, thorough=False)
        with open_source(str(path)) as source:
            assert len(source.regions) >= min(phnum, 1)
    else:
        assert use(path, thorough=False) in ("corrupt", "whole")


def test_a_seek_table_that_lies_is_not_believed(seeds: Seeds, tmp_path: Path) -> None:
    dump = seeds["lz4"].read_bytes()
    count = struct.unpack_from("<I", dump, len(dump) - 9)[0]
    table = len(dump) - 9 - 8 * count
    original = image_of(seeds["lz4"])
    path = tmp_path / "lie.core.lz4"
    for number in range(count):
        for which, change in ((0, 4), (0, -1), (4, 4096), (4, -4096)):
            data = bytearray(dump)
            at = table + 8 * number + which
            old = struct.unpack_from("<I", data, at)[0]
            struct.pack_into("<I", data, at, (old + change) % (1 << 32))
            path.write_bytes(data)
            with open_source(str(path)) as source:
                assert "seek table" in str(describe(source)["problems"])
                ranges = [(r.start, r.end) for r in source.regions]
                assert walked(source, ranges) == [original.of(*found) for found in ranges]


def test_a_frame_whose_checksum_fails_is_a_gap_and_nothing_else(
    seeds: Seeds, tmp_path: Path
) -> None:
    dump = seeds["lz4"].read_bytes()
    original = image_of(seeds["lz4"])
    count = struct.unpack_from("<I", dump, len(dump) - 9)[0]
    (before, start), (size, length) = struct.iter_unpack("<II", dump[-9 - 8 * count :][:16])
    data = bytearray(dump)
    # The content checksum of the second frame: 3% of other bits change nothing that is unpacked.
    data[before + size - 1] ^= 1
    path = tmp_path / "flip.core.lz4"
    path.write_bytes(data)
    with open_source(str(path)) as source:
        assert isinstance(source, Dumped)
        lost = list(source.addresses(0, start, start + length))
        assert sum(end - at for at, end in lost) == length
        for region in source.regions:
            (area,) = walked(source, [(region.start, region.end)])
            mask = bytearray(original.of(region.start, region.end).mask)
            for at, end in lost:
                if region.start <= at < region.end:
                    mask[at - region.start : end - region.start] = bytes(end - at)
            assert area.mask == mask
    assert use(path, thorough=True, original=original) == "gaps"


@pytest.mark.parametrize("format", ["raw", "raw-lz4"])
@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/1_mem_1000.bin", "1_mem_1000.bin\0", ""]
)
def test_names_of_files_that_lead_elsewhere(
    seeds: Seeds, tmp_path: Path, format: str, name: str
) -> None:
    folder = shutil.copytree(seeds[format], tmp_path / "dump")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    files = next(r["files"] for r in manifest["regions"] if r["files"])
    files[0]["name"] = name
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptDump, match=r"names the file|no text"):
        open_source(str(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("nice", value) for value in (1000, -129, "low", None)),
        *(("state", value) for value in ("RR", "", "\u00e9", 1)),
        *((key, value) for key in ("flag", "pgrp", "sid") for value in (-1, 1 << 64, "1", [])),
    ],
)
def test_a_process_that_cannot_be(seeds: Seeds, tmp_path: Path, key: str, value: Any) -> None:
    """What a core of it would have to say."""
    folder = shutil.copytree(seeds["raw"], tmp_path / "dump")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["process"][key] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptDump, match="manifest"):
        open_source(str(folder))


def changed(seeds: Seeds, folder: Path, changes: dict[str, Any]) -> Path:
    """A raw dump whose manifest says something else, and nothing of gaps."""
    shutil.copytree(seeds["raw"], folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for region in changes.get("regions", ()):
        region.update({**manifest["regions"][0], **region})
    (folder / "manifest.json").write_text(json.dumps({**manifest, "gaps": [], **changes}))
    return folder


def test_a_region_up_to_the_end_of_all_addresses(seeds: Seeds, tmp_path: Path) -> None:
    region = {"start": "0x0", "end": hex(1 << 64), "files": []}
    refused(changed(seeds, tmp_path / "dump", {"regions": [region]}), "manifest")


def test_a_machine_that_is_none(seeds: Seeds, tmp_path: Path) -> None:
    folder = changed(seeds, tmp_path / "dump", {"host": {"machine": [1]}})
    with open_source(str(folder)) as source:
        assert isinstance(source, Dumped)
        with pytest.raises(UsageError):
            extract(source, "core", str(tmp_path / "core"))


def test_files_that_are_no_files(seeds: Seeds, tmp_path: Path) -> None:
    folder = shutil.copytree(seeds["raw"], tmp_path / "dump")
    manifest = folder / "manifest.json"
    text = manifest.read_bytes()
    manifest.unlink()
    os.mkfifo(manifest)
    refused(folder, "manifest")
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(CorruptDump, match="manifest"):
        open_source(str(folder))
    manifest.rmdir()
    manifest.write_bytes(text)
    file = next(f for f in folder.iterdir() if f.suffix == ".bin")
    file.unlink()
    os.mkfifo(file)
    readable(folder, thorough=True)
    with open_source(str(folder)) as source:
        assert "its file is missing" in {gap["reason"] for gap in describe(source)["gaps"]}
