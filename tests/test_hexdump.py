"""Hex dumps, held against hexdump(1) of util-linux; FASTDUMP_TEST_SEED repeats a run."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import targets
from fastdump._native import Gap, ffi, lib
from fastdump.addresses import parse_length, ranges_of
from fastdump.cli import hexdump_command, main
from fastdump.cli.hexdump_command import _Followed
from fastdump.errors import UsageError
from fastdump.hexdump import Hexdump, digits_of
from fastdump.labels import Kind, Label
from fastdump.pointers import Pointers
from fastdump.region import Region
from fastdump.source import Chunk, Source, Zeros
from fastdump.symbols import Symbols
from test_kernels import Guarded
from test_real import program
from test_strings import same

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20241126"))
INPUTS = [
    pytest.param(range(1000), id="1000"),
    pytest.param(range(1000, 10_000), id="9000", marks=pytest.mark.long),
]
MOST = 5000


# --- the lines ---------------------------------------------------------------------------


def random_input(rng: random.Random, most: int = MOST) -> bytes:
    """Random bytes, runs of equal lines and of zeros, none of them at a round place."""
    size = rng.randrange(1, most)
    data = bytearray()
    while len(data) < size:
        line = rng.randbytes(rng.choice((1, 2, 8, 16, 16, 16, 32)))
        data += rng.choice((rng.randbytes(rng.randrange(1, 100)), line * rng.randrange(1, 30),
                            bytes(rng.randrange(1, 300))))  # fmt: skip
    return bytes(data[:size])


def dumped(
    rng: random.Random, data: bytes, address: int = 0, digits: int = 8, **options: Any
) -> bytes:
    """What Hexdump makes of *data*, fed in parts of any size; its zeros perhaps as known zeros."""
    dump = Hexdump(digits, capacity=rng.choice((4096, 1 << 16)), **options)
    dump.begin(address)
    out, at = bytearray(), 0
    while at < len(data):
        part = data[at : at + rng.choice((1, rng.randrange(1, 40), rng.randrange(1, MOST)))]
        as_zeros = not any(part) and rng.random() < 0.5
        for lines in dump.zeros(len(part)) if as_zeros else dump.feed(part):
            out += lines
        at += len(part)
    assert dump.address == address + len(data)
    return bytes(out) + bytes(dump.end()) + f"{dump.address:0{digits}x}\n".encode()


@pytest.mark.parametrize("numbers", INPUTS)
def test_lines_are_those_of_hexdump(tmp_path: Path, numbers: range) -> None:
    print(f"FASTDUMP_TEST_SEED={SEED}")
    rng = random.Random(f"{SEED} {numbers}")
    inputs = [random_input(rng) for _ in numbers]
    path = tmp_path / "data"
    path.write_bytes(b"".join(inputs))
    start = 0
    for data in inputs:
        where = ("-s", str(start), "-n", str(len(data)), str(path))
        for squeeze in (True, False) if rng.random() < 0.1 else (True,):
            command = [program("hexdump"), "-C", *(() if squeeze else ("-v",)), *where]
            theirs = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
            same(dumped(rng, data, start, squeeze=squeeze), theirs)
        start += len(data)


@pytest.mark.parametrize(
    ("width", "group"),
    [(1, 8), (7, 3), (8, 4), (16, 4), (16, 16), (20, 8), (32, 8), (32, 1), (64, 16), (256, 8)],
)
@pytest.mark.parametrize("squeeze", [True, False])
def test_other_widths_are_what_hexdump_makes_of_such_a_format(
    tmp_path: Path, width: int, group: int, squeeze: bool
) -> None:
    rng = random.Random(f"{SEED} {width} {group}")
    groups = [min(group, width - at) for at in range(0, width, group)]
    # Of several cells hexdump leaves the last one's space out.
    cells = ' "  " '.join(f'{n}/1 "%02x{" " * (n > 1)}"' for n in groups)
    formats = ('"%08.8_Ax\\n"', f'"%08.8_ax  " {cells} "  |"', f'{width}/1 "%_p" "|\\n"')
    options = [word for text in formats for word in ("-e", text)] + ["-v"] * (not squeeze)
    path = tmp_path / "data"
    for _ in range(20):
        data = random_input(rng)
        path.write_bytes(data)
        theirs = subprocess.run([program("hexdump"), *options, path], capture_output=True).stdout
        same(dumped(rng, data, width=width, group=group, squeeze=squeeze), theirs)


def test_addresses_of_any_size() -> None:
    for address in (0, 0xFFFFFFF0, 1 << 32, 0x7FFC_1234_5678, (1 << 64) - 64):
        digits = digits_of(address + 63)
        dump = Hexdump(digits)
        dump.begin(address)
        lines = b"".join(map(bytes, dump.feed(bytes(range(64))))).splitlines()
        assert [line.split()[0] for line in lines] == [
            f"{address + at:0{digits}x}".encode() for at in range(0, 64, 16)
        ]


def test_known_zeros_of_any_length_at_once() -> None:
    dump = Hexdump(16)
    dump.begin(3)
    out = b"".join(map(bytes, dump.feed(b"ab")))
    out += b"".join(map(bytes, dump.zeros(1 << 62)))
    out += b"".join(map(bytes, dump.feed(b"c"))) + bytes(dump.end())
    lines = out.decode().splitlines()
    zeros = "00 00 00 00 00 00 00 00"
    assert lines == [
        f"{3:016x}  61 62 {zeros[6:]}  {zeros}  |ab..............|",
        f"{19:016x}  {zeros}  {zeros}  |................|",
        "*",
        f"{3 + (1 << 62):016x}  00 00 63{' ' * 42}|..c|",
    ]


def test_a_line_of_before_is_forgotten() -> None:
    dump = Hexdump(8)
    shown = []
    for _ in range(2):
        dump.begin(0)
        shown.append(b"".join(map(bytes, dump.feed(bytes(32)))))
    assert shown[0] == shown[1]
    assert shown[0].count(b"\n") == 2


# --- colours -----------------------------------------------------------------------------

CODE = re.compile(rb"\x1b\[(\d+)m")


def class_of(byte: int) -> bytes:
    """The colour of a byte."""
    if byte == 0:
        return b"90"
    if byte >= 0x80:
        return b"33"
    if chr(byte).isspace() and byte < 0x1C:
        return b"32"
    return b"32" if byte == 0x20 else b"36" if chr(byte).isprintable() else b"35"


def test_colours_are_those_of_classes_and_change_nothing_else() -> None:
    rng = random.Random(f"{SEED} colours")
    for width, group in ((16, 8), (5, 2), (256, 8)):
        for _ in range(20):
            data = bytes(range(256)) + random_input(rng)
            plain = dumped(rng, data, width=width, group=group)
            colored = dumped(rng, data, width=width, group=group, color=True)
            same(CODE.sub(b"", colored), plain)
            for line in colored.splitlines():
                check_colours(line)


def check_colours(line: bytes) -> None:
    """Each cell and each character has its colour, and no code says what is so already."""
    if b"|" not in line:
        assert not CODE.search(line)
        return
    cells, _, text = line.partition(b"|")
    shown: list[bytes] = []
    for column in (cells[8:], text[: text.rindex(b"|")]):
        now, at, found = b"39", 0, []
        while at < len(column):
            if code := CODE.match(column, at):
                assert code[1] != now
                now, at = code[1], code.end()
            elif column is not text and column[at : at + 1] == b" " and len(shown) == 0:
                at += 1
            else:
                found.append(now)
                at += 1 if shown else 2
        assert now == b"39"
        values = bytes.fromhex(CODE.sub(b"", cells[8:]).decode())
        assert found == [class_of(byte) for byte in values]
        shown.append(column)


# --- bounds ------------------------------------------------------------------------------


def test_nothing_beyond_the_buffers_is_touched() -> None:
    """Data and output end at guard pages; the output has room for a line, or little more."""
    rng = random.Random(f"{SEED} guards")
    source, target = Guarded(2 * MOST), Guarded(1 << 14)
    for _ in range(300):
        data = random_input(rng, 1000)
        options = {"width": rng.choice((1, 8, 16, 16, 20, 256)), "group": rng.choice((1, 8, 16))}
        options |= {"digits": rng.randrange(5, 17), "color": rng.random() < 0.4}
        dump = ffi.new("struct fastdump_hexdump *", options)
        written = ffi.new("uint64_t *")
        assert lib.fastdump_hexdump_begin(dump, 0, 0) == 0
        room = lib.fastdump_hexdump_room(dump)
        capacity = room + rng.choice((0, rng.randrange(room), 3 * room))
        out = ffi.from_buffer(target.last(bytes(capacity)))
        view = ffi.from_buffer(rng.choice((source.first, source.last))(data))
        found, at = bytearray(), 0
        while at < len(data):
            taken = lib.fastdump_hexdump(dump, view + at, len(data) - at, capacity, out, written)
            assert taken > 0
            at += taken
            found += ffi.buffer(out, written[0])
        end = lib.fastdump_hexdump_end(dump, capacity, out)
        found += ffi.buffer(out, end)
        digits = options["digits"]
        whole = dumped(rng, data, 0, **{k: v for k, v in options.items() if k != "digits"},
                       digits=digits)  # fmt: skip
        same(bytes(found), whole[: whole[:-1].rindex(b"\n") + 1])


def test_what_is_out_of_bounds() -> None:
    good = {"width": 16, "group": 8, "digits": 8}
    written = ffi.new("uint64_t *", 7)
    bad: list[dict[str, int]] = [{"width": 0}, {"width": 257}, {"group": 0}, {"digits": 0}]
    for options in (*bad, {"digits": 17}, {"width": 2**32 - 1}):
        dump = ffi.new("struct fastdump_hexdump *", good | options)
        assert lib.fastdump_hexdump_begin(dump, 0, 0) == -errno.EINVAL
    dump = ffi.new("struct fastdump_hexdump *", good)
    assert lib.fastdump_hexdump_begin(dump, 100, 16) == -errno.EINVAL
    assert lib.fastdump_hexdump_begin(dump, 3, 4) == -errno.EINVAL
    out, data = ffi.new("unsigned char[]", 1000), bytes(100)
    room = lib.fastdump_hexdump_room(dump)
    for show in (
        lambda *rest: lib.fastdump_hexdump(dump, data, *rest, out, written),
        lambda *rest: lib.fastdump_hexdump_zeros(dump, *rest, out, written),
    ):
        assert lib.fastdump_hexdump_begin(dump, 0xFFFFFFF0, 0) == 0
        assert show(17, 1000) == show(2**64 - 1, 1000) == -errno.EOVERFLOW
        assert show(16, room - 1) == -errno.ENOSPC
        assert written[0] == 0
        assert show(15, room) == 15
        assert lib.fastdump_hexdump_end(dump, room - 1, out) == -errno.ENOSPC
        assert show(2, room) == -errno.EOVERFLOW
        assert show(1, room) == 1
        assert (dump.address, written[0]) == (1 << 32, room)
    dump.digits = 16
    assert lib.fastdump_hexdump_zeros(dump, 2**63, 1000, out, written) == -errno.EOVERFLOW
    with pytest.raises(OSError, match="Invalid argument"):
        Hexdump(8, width=300)


# --- addresses ---------------------------------------------------------------------------


def region(start: int, end: int, path: str = "", inode: int = 0) -> Region:
    return Region(start, end, "rw-p", 0, "fe:01" if inode else "00:00", inode, path)


class FakeSource(Source):
    """Regions, and what a walk of them yields."""

    name, format = "1234", "process"

    def __init__(self, regions: Sequence[Region], parts: Sequence[Chunk | Zeros | Gap] = ()):
        self._regions, self._parts = regions, parts

    @property
    def regions(self) -> Sequence[Region]:
        return self._regions

    @property
    def labels(self) -> Sequence[Label]:
        names = {"[heap]": Kind.HEAP, "[stack]": Kind.STACK}
        return [
            Label(names[r.path]) if r.path in names
            else Label(Kind.LIBRARY, r.path) if r.inode
            else Label(Kind.LIBRARY, "/lib/libone.so.1") if r.start == 0x9000
            else Label(Kind.ANONYMOUS)
            for r in self._regions
        ]  # fmt: skip

    def walk(self, ranges: Any) -> Iterator[Chunk | Zeros | Gap]:
        for start, end in ranges:
            for part in self._parts:
                first = part.address if isinstance(part, Chunk) else part.start
                if start <= first < end:
                    yield part

    def place(self, **_: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass


REGIONS = [
    region(0x1000, 0x3000, "[heap]"),
    region(0x3000, 0x3080, "[heap]"),
    region(0x7000, 0x8000, "/lib/libone.so.1", 5),
    region(0x8000, 0x9000, "/lib/libone.so.1", 5),
    region(0x9000, 0xA000),  # its .bss
    region(0xC000, 0xD000, "/lib/libone.so.1", 5),
    region(0x10000, 0x11000, "/lib/libc++.so", 6),
    region(0x20000, 0x21000, "/a/libtwo-2.so (deleted)", 7),
    region(0x30000, 0x31000, "/b/libtwo-2.so", 8),
    region(0x40000, 0x41000),
]


@pytest.mark.parametrize(
    ("text", "length", "ranges"),
    [
        ("1234", None, [(0x1234, 0x1334)]),
        ("0x1234", None, [(0x1234, 0x1334)]),
        ("3000", None, [(0x3000, 0x3080)]),  # no further than the heap goes
        ("2ff0", None, [(0x2FF0, 0x3080)]),
        ("5000", None, [(0x5000, 0x5100)]),
        ("1234", 5, [(0x1234, 0x1239)]),
        ("3000+200", None, [(0x3000, 0x30C8)]),
        ("0X30Aa+0x10", 3, [(0x30AA, 0x30BA)]),
        ("1000+2K", None, [(0x1000, 0x1800)]),
        ("1000-0x1001", None, [(0x1000, 0x1001)]),
        ("[heap]", None, [(0x1000, 0x3080)]),
        ("[heap]", 0x10, [(0x1000, 0x1010)]),
        ("[heap]+0x100", None, [(0x1100, 0x1200)]),
        ("[heap]+16+0x20", 3, [(0x1010, 0x1030)]),
        ("libone.so.1", None, [(0x7000, 0xA000), (0xC000, 0xD000)]),
        ("/lib/libone.so.1", 0x3004, [(0x7000, 0xA000), (0xC000, 0xC004)]),
        ("libone.so.1+0", 1, [(0x7000, 0x7001)]),
        ("libc++.so", None, [(0x10000, 0x11000)]),
        ("libc++.so+1+2", None, [(0x10001, 0x10003)]),
        ("/a/libtwo-2.so", None, [(0x20000, 0x21000)]),
    ],
)
def test_what_an_address_means(
    text: str, length: int | None, ranges: list[tuple[int, int]]
) -> None:
    assert ranges_of(text, FakeSource(REGIONS), length) == ranges


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "neither an address nor", "[heap]"),
        ("libone", "'libone'", "libone.so.1"),
        ("Heap", "'Heap'", "there is [heap]"),
        ("[haep]", "'[haep]'", "there is [heap]"),
        ("libtwo-2.so", "2 files", "/a/libtwo-2.so, /b/libtwo-2.so"),
        ("1000-1000", "1000-1000 is empty", ""),
        ("1001-1000", "empty", ""),
        ("1000+0", "empty", ""),
        ("1000+1+2", "two lengths", ""),
        ("ffffffffffffffff+1", "beyond", ""),
        ("[heap]+0xfffffffffffffff0", "beyond", ""),
        ("11112222333344445", "neither", ""),
        ("1000+1T", "neither", ""),
        ("1000--1", "neither", ""),
        ("١٢", "neither", ""),
    ],
)
def test_what_means_nothing(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        ranges_of(text, FakeSource(REGIONS))
    assert message in str(error.value)
    assert hint in error.value.hint


def test_no_bytes_of_a_name() -> None:
    with pytest.raises(UsageError, match="empty"):
        ranges_of("[heap]", FakeSource(REGIONS), 0)


def test_a_source_without_names() -> None:
    with pytest.raises(UsageError) as error:
        ranges_of("[heap]", FakeSource(REGIONS[-1:]))
    assert error.value.hint == "no region has a name"


def test_lengths() -> None:
    assert [parse_length(text) for text in ("0", "010", "0x10", "3k", "0x2M", "1G")] == [
        0, 10, 16, 3 << 10, 2 << 20, 1 << 30,
    ]  # fmt: skip
    for text in ("", "-1", "1.5", "K", "1KB", "0x", "1 ", "\uff11", "9" * 5000):
        with pytest.raises(UsageError):
            parse_length(text)


# --- the command -------------------------------------------------------------------------


class Shown(NamedTuple):
    """What the command printed, and its exit code."""

    out: bytes
    err: str
    code: int


def hexdump(*words: object) -> Shown:
    """``fastdump hexdump``; never a traceback."""
    command = [sys.executable, "-m", "fastdump", "hexdump", *map(str, words)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    err = done.stderr.decode()
    assert "Traceback" not in err, err
    return Shown(done.stdout, err, done.returncode)


def test_a_gap_is_told_and_nothing_is_shown_for_it(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    line = b"0123456789abcdef"
    parts: list[Chunk | Zeros | Gap] = [
        Chunk(0x1000, memoryview(line * 2 + line[:3])),
        Gap(0x1023, 0x1100, "unreadable", 5),
        Gap(0x1100, 0x1200, "unreadable", 5),
        Gap(0x1200, 0x1300, "swapped"),
        Chunk(0x1300, memoryview(line)),
        Zeros(0x1310, 0x2000),
        Gap(0x2000, 0x2010, "past end of file"),
    ]
    monkeypatch.setattr(hexdump_command, "open_source", lambda _: FakeSource(REGIONS, parts))
    with pytest.raises(SystemExit) as end:
        main(["hexdump", "1234", "1000-2010"])
    out, err = capfdbinary.readouterr()
    cells = "30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  |0123456789abcdef|"
    zeros = "00 " * 8 + " " + "00 " * 8 + " |................|"
    assert out.decode().splitlines() == [
        f"00001000  {cells}",
        "*",
        f"00001020  30 31 32{' ' * 42}|012|",
        "00001023",
        f"00001300  {cells}",
        f"00001310  {zeros}",
        "*",
        "00002000",
    ]
    assert err.decode().splitlines() == [
        "fastdump: 1023-1200: unreadable",
        "fastdump: 1200-1300: swapped",
        "fastdump: 2000-2010: past end of file",
    ]
    assert end.value.code == 3


def shifted(data: bytes, address: int, *options: str) -> bytes:
    """What hexdump(1) makes of *data*, as if it lay at an address."""
    command = [program("hexdump"), "-C", *options]
    lines = subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout
    return re.sub(
        rb"^[0-9a-f]{8}",
        lambda found: b"%012x" % (int(found[0], 16) + address),
        lines,
        flags=re.MULTILINE,
    )


def test_regions_of_a_process(awkward: targets.Target) -> None:
    """Each with content of its own: whole, and from an odd address to another one."""
    whole, odd = [], []
    for truth in awkward.truth["regions"]:
        for start, end, kind, seed in truth["content"]:
            data = targets.expected(start, end, kind, seed) if end - start < 1 << 20 else None
            if data:
                whole.append((start, data))
                odd.append((start + 5, data[5:1000]))
    words = [f"{start:x}-{start + len(data):x}" for start, data in whole]
    assert len(words) > 20
    shown = hexdump(awkward.pid, *words)
    same(shown.out, b"".join(shifted(data, start) for start, data in whole))
    assert shown[1:] == ("", 0)
    words = [f"{start:x}+{len(data)}" for start, data in odd]
    shown = hexdump(awkward.pid, "-v", *words)
    same(shown.out, b"".join(shifted(data, start, "-v") for start, data in odd))
    colored = hexdump(awkward.pid, "-v", "--color", "always", *words).out
    assert CODE.search(colored)
    same(CODE.sub(b"", colored), shown.out)


@pytest.mark.parametrize("format", ["core", "lz4", "raw", "raw-lz4"])
def test_dumps_are_as_the_process(awkward: targets.Target, format: str, tmp_path: Path) -> None:
    """A region that nobody changes, and what is known to be zero in it."""
    path = tmp_path / "dump"
    command = [sys.executable, "-m", "fastdump", "dump", str(awkward.pid), "-f", format, "-o", path]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    truth = awkward.region("mixed")
    addresses = f"{truth['start'] + 1:x}-{truth['end']:x}"
    shown = hexdump(path, addresses)
    assert shown.err == ""
    same(shown.out, hexdump(awkward.pid, addresses).out)


def test_what_a_process_has_no_bytes_of(awkward: targets.Target) -> None:
    truth = next(
        (start, end)
        for region in awkward.truth["regions"]
        for start, end, kind, _ in region["content"]
        if kind == "nodata"
    )
    shown = hexdump(awkward.pid, f"{truth[0]:x}-{truth[1]:x}")
    assert (shown.out, shown.code) == (b"", 3)
    assert shown.err.startswith(f"fastdump: {truth[0]:x}-")
    assert "not mapped" in hexdump(awkward.pid, "0").err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("1",),
        ("1", "2", "--width", "0"),
        ("1", "2", "--width", "257"),
        ("1", "2", "--group", "0"),
        ("1", "2", "--color", "green"),
        ("1", "2", "-n", "1x"),
        ("not-there", "2"),
    ],
)
def test_usage(words: Sequence[str]) -> None:
    shown = hexdump(*words)
    assert (shown.code, shown.out) == (2, b"")


# --- pointers ----------------------------------------------------------------------------

POINTERS = """
import ctypes, json, sys
libc = ctypes.CDLL(None)
malloc = ctypes.cast(libc.malloc, ctypes.c_void_p).value
room = ctypes.create_string_buffer(1 << 20)
words = (ctypes.c_uint64 * 8).from_buffer(room)
base = ctypes.addressof(words)
words[:] = [malloc, malloc + 4, 1, base + 8, 0, 2**64 - 1, malloc, malloc + 4]
print(json.dumps([base, malloc]), flush=True)
sys.stdin.read()
"""


def test_pointers_are_followed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", POINTERS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        base, _ = json.loads(process.stdout.readline())
        plain = hexdump(process.pid, f"{base:x}+64")
        shown = hexdump(process.pid, f"{base:x}+64", "--follow-pointers")
        odd = hexdump(process.pid, f"{base + 4:x}+60", "--follow-pointers", "--width", "12")
        every = hexdump(process.pid, "[stack]", "--follow-pointers", "-v")
        core = tmp_path / "core"
        dump = [sys.executable, "-m", "fastdump", "dump", str(process.pid), "-f", "core"]
        subprocess.run([*dump, "-o", core], stdout=subprocess.DEVNULL, check=True)
        process.communicate()
    assert hexdump(core, f"{base:x}+64", "--follow-pointers") == shown
    lines = shown.out.decode().splitlines()
    # Behind 16 characters and a bar: a byte of an address may be a bar itself.
    names = [line.partition("|")[2][17:] for line in lines]
    assert names[0] == "  0: libc.so.6:malloc  8: libc.so.6:malloc+0x4"
    assert re.fullmatch(r"  8: anonymous [0-9a-f]+\+0x[0-9a-f]+", names[1])
    assert names[2:] == ["", names[0], ""]
    cut = [line.removesuffix(name) for line, name in zip(lines, names, strict=True)]
    assert cut == plain.out.decode().splitlines()
    assert [line.partition("|")[2][13:] for line in odd.out.decode().splitlines()[:-1]] == [
        "  4: libc.so.6:malloc+0x4",
        names[1],
        "",
        "  8: libc.so.6:malloc",
        "  4: libc.so.6:malloc+0x4",
    ]
    assert b": [stack]+0x" in every.out


@pytest.mark.parametrize("width", [1, 3, 4, 8, 12, 16, 20])
def test_a_word_is_named_behind_the_line_in_which_it_begins(width: int) -> None:
    """Wherever the dump begins, and however its bytes come."""
    rng = random.Random(f"{SEED} words {width}")
    for _ in range(100):
        address, data = 0x1000 + rng.randrange(16), random_input(rng, 300)
        plain = Hexdump(8, width=width, squeeze=rng.random() < 0.5)
        lines = _Followed(plain, 8, width, lambda word: f"{word:x}" if word else "")
        lines.begin(address)
        shown, at = b"", 0
        while at < len(data):
            part = data[at : at + rng.choice((1, 7, 16, 50, 300))]
            shown += b"".join(lines.feed(part) if any(part) else lines.zeros(len(part)))
            at += len(part)
        for line in (shown + lines.end()).decode().splitlines():
            if line == "*":
                continue
            start = int(line[:8], 16) - address
            words = {
                at: int.from_bytes(data[start + at : start + at + 8], "little")
                for at in range(-(address + start) % 8, width, 8)
                if start + at + 8 <= len(data)
            }
            names = "".join(f"  {at:x}: {word:x}" for at, word in words.items() if word)
            assert re.split(r"\|(?=  [0-9a-f]+: |$)", line, maxsplit=1)[1] == names


def test_the_file_of_another_build_names_nothing() -> None:
    """Of a dump: the file of that path on this host may not be the one that was mapped."""
    path = targets.build("awkward")
    content = path.read_bytes()
    with path.open("rb") as file:
        build_id = Symbols(file).build_id
    assert build_id
    value = int(
        next(
            line.split()[0]
            for line in subprocess.check_output([program("nm"), path], text=True).splitlines()
            if line.endswith(" T main")
        ),
        16,
    )
    base = 0x5000_0000_0000
    regions = [region(base, base + len(content), str(path), 5)]

    def name_in(memory: bytes) -> str:
        source = FakeSource(regions, [Chunk(base + build_id.vaddr, memoryview(memory))])
        return Pointers(source).name_of(base + value + 1)

    assert name_in(build_id.note) == "awkward:main+0x1"
    assert name_in(build_id.note[:-1] + b"?") == f"awkward+{value + 1:#x}"
    lost = FakeSource(regions, [Gap(base + build_id.vaddr, base + 0x10000, "not in the dump")])
    assert Pointers(lost).name_of(base + value) == f"awkward+{value:#x}"


def test_names_fit_for_a_terminal() -> None:
    source = FakeSource([region(0x1000, 0x2000, "/tmp/\x1b[31m\n\udcff", 5)])
    assert Pointers(source).name_of(0x1004) == "\\x1b[31m\\n\\xff+0x4"
    assert Pointers(source).name_of(0x2000) == Pointers(source).name_of(0xFFF) == ""


def test_symbols_are_those_that_readelf_tells() -> None:
    """Of a program with a symbol table, and of a library that is stripped."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    library = next(Path(line.split()[-1]) for line in maps if "/libc.so" in line)
    for path, table in ((targets.build("awkward"), "-s"), (library, "--dyn-syms")):
        command = [program("readelf"), "-W", table, path]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        names: dict[int, set[str]] = {}
        sizes: dict[int, int] = {}
        for fields in map(str.split, out.splitlines()):
            if len(fields) >= 8 and fields[3] in ("FUNC", "OBJECT", "IFUNC"):
                value, size = int(fields[1], 16), int(fields[2], 0)
                if size and fields[6] != "UND":
                    names.setdefault(value, set()).add(fields[7].partition("@")[0])
                    sizes[value] = max(sizes.get(value, 0), size)
        assert len(names) > 20
        with path.open("rb") as file:
            symbols = Symbols(file)
        for value, known in names.items():
            found = symbols.at(value)
            assert found, hex(value)
            assert found[0] in known
            assert found[1] == 0
        at = max(sizes, key=lambda value: sizes[value])
        name, _ = symbols.at(at) or ("", 0)
        assert symbols.at(at + sizes[at] - 1) == (name, sizes[at] - 1)
        last = max(names)
        assert symbols.at(last + sizes[last]) is None
        assert symbols.at(0) is None
        assert symbols.at(1 << 40) is None


def test_files_that_lie_have_no_symbols(tmp_path: Path) -> None:
    rng = random.Random(f"{SEED} broken")
    good = targets.build("awkward").read_bytes()
    path = tmp_path / "broken"
    for _ in range(100):
        data = bytearray(good)
        if rng.random() < 0.5:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randrange(1, 30)):
            at = rng.randrange(len(data)) if rng.random() < 0.3 else rng.randrange(64)
            data[min(at, len(data) - 1)] = rng.randrange(256)
        path.write_bytes(data)
        with path.open("rb") as file:
            symbols = Symbols(file)
        for value in (0, 0x1000, 1 << 40, 2**64 - 1):
            symbols.at(value)
            symbols.bias_of(value, value)
