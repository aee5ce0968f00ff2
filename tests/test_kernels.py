"""The kernels that find strings, against a plain loop, against each other, and GNU strings.

A kernel tells of edges, from which runs of printable characters are made (``csrc/scan.inc.h``).
FASTDUMP_TEST_SEED repeats a run or makes another.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdump._native import PAGE_SIZE, ffi, lib
from fastdump._strings import (
    EDGES,
    ENCODINGS,
    LEAST_EDGES,
    Finder,
    Form,
    Giant,
    Query,
    Scanner,
    kernels,
    text_of,
)
from fastdump.errors import UsageError

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20240501"))
LIBC = ctypes.CDLL(None, use_errno=True)
BLOCK, STRIP = 64, 4096  # what the vector kernels take at a time
MOST = 20_000
MIN_LENGTHS = (*range(1, 11), 16, 17, 32, 33, 63, 64, 65, 100)
WIDTHS = {"s": 1, "S": 1, "l": 2, "b": 2, "L": 4, "B": 4, "U": 1}

# Each byte that is the first or last of a class, whole characters, and halves of them.
PIECES = (
    *(bytes([c]) for c in b"\0\t\n\v\f\r\x08\x0e\x1f\x20Az~\x7f\x80\xbf\xc0\xc3\xe2\xf0\xff"),
    *(b"\xc3\xa9", b"\xe2\x82\xac", b"\xf0\x9f\x90\x8d", b"\xff\x80\xbf\x80"),
    *(b"\xe2\x82", b"\xf0\x9f\x90", b"\xc3\xa9\x80"),
    *(b"A\0", b"\0A", b"~\0", b"\0\t", b"\n\0", b"\0\xe9", b"\xac\x20"),
    *(b"A\0\0\0", b"\0\0\0A", b"~\0\0\0", b"\0\0\0\t", b"\0\0\0\r", b"A\0\0"),
)
# One printable character of each encoding.
UNITS = {"s": b"A", "S": b"\xe9", "l": b"A\0", "b": b"\0A", "L": b"A\0\0\0", "B": b"\0\0\0A"}
UNITS["U"] = b"A"


# --- What is right ---------------------------------------------------------------------------


def strings_of(
    data: bytes, encoding: str, min_length: int, whitespace: bool
) -> list[tuple[int, int]]:
    """The strings that strings(1) finds, as ``[start, end)``: where one ended it tries the next
    byte."""
    found = []
    at = 0
    while at < len(data):
        start, characters = at, 0
        while length := character_length(data, at, encoding, whitespace):
            at += length
            characters += 1
        if characters >= min_length:
            found.append((start, at))
        at += 1
    return found


def character_length(data: bytes, at: int, encoding: str, whitespace: bool) -> int:
    """Bytes of the printable character at *at*, 0 if there is none."""
    width = WIDTHS[encoding]
    character = data[at : at + width]
    if len(character) < width:
        return 0
    if encoding == "U" and character[0] >= 0xC0:
        lead = character[0]
        length = 2 if lead <= 0xDF else 3 if lead <= 0xEF else 4
        rest = data[at + 1 : at + length]
        whole = len(rest) == length - 1 and all(0x80 <= c <= 0xBF for c in rest)
        return length if whole else 0
    code = int.from_bytes(character, "little" if encoding in "lL" else "big")
    if 0x20 <= code <= 0x7E or code == 0x09 or (encoding == "S" and code >= 0x80):
        return width
    return width if whitespace and 0x0A <= code <= 0x0D else 0  # \n \v \f \r


@functools.lru_cache(maxsize=32)
def runs_that_pass(data: bytes, encoding: str, whitespace: bool) -> Callable[[int], list]:
    """A function of min_length: the runs that a kernel must tell of."""
    runs = strings_of(data, encoding, 1, whitespace)

    def longer(min_length: int) -> list[tuple[int, int]]:
        least = filter_of(encoding, min_length) * WIDTHS[encoding]
        return [(start, end) for start, end in runs if end - start >= least]

    return longer


def filter_of(encoding: str, min_length: int) -> int:
    """The units that a kernel looks for: no more than it sees in a word of 64 bytes. (A unit of
    UTF-8 is a byte: a character may be up to 4.)"""
    return min(min_length, 64 // WIDTHS[encoding])


# --- What a kernel finds ----------------------------------------------------------------------


class Stream:
    """One kernel in one stream, which comes in pieces; ``edges`` as far as it has come."""

    def __init__(
        self, kernel: str, encoding: str, min_length: int, whitespace: bool, capacity: int = EDGES
    ) -> None:
        self.finder = Finder(kernel, encoding, min_length, whitespace)
        self.capacity = capacity
        self.calls = self.at = 0
        self.edges: list[int] = []

    def feed(self, piece: bytes | memoryview, last: bool) -> None:
        view = memoryview(piece)
        done = 0
        while True:
            taken, edges = self.find(view[done:], last, self.at + done)
            assert 0 <= taken <= len(view) - done
            assert taken or not len(view), "a call made no progress"
            self.calls += 1
            self.edges += edges
            done += taken
            if done == len(view):
                break
        self.at += done

    def find(self, view: memoryview, last: bool, base: int) -> tuple[int, list[int]]:
        return self.finder.find(view, last, base, self.capacity)

    def runs(self) -> list[tuple[int, int]]:
        """The runs as ``[start, end)``; the stream has ended."""
        assert self.edges == sorted(set(self.edges))
        assert len(self.edges) % 2 == 0, "a run has no end"
        finder = self.finder._finder
        return [
            (start - finder.start_delta, end - finder.end_delta)
            for start, end in zip(self.edges[::2], self.edges[1::2], strict=True)
        ]


def found_by(
    kernel: str, data: bytes | memoryview, encoding: str, min_length: int, whitespace: bool
) -> list[tuple[int, int]]:
    stream = Stream(kernel, encoding, min_length, whitespace)
    stream.feed(data, True)
    return stream.runs()


def edges_of(
    kernel: str, pieces: list[bytes], encoding: str, min_length: int, whitespace: bool
) -> list[int]:
    stream = Stream(kernel, encoding, min_length, whitespace)
    for piece in pieces[:-1]:
        stream.feed(piece, False)
    stream.feed(pieces[-1], True)
    return stream.edges


# --- Data -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _seed() -> None:
    print(f"FASTDUMP_TEST_SEED={SEED}")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test."""
    return random.Random(f"{SEED} {request.node.name}")


def awkward_data(rng: random.Random, length: int) -> bytes:
    """Few of the pieces, mostly short runs of each: dense with edges, and near their limits."""
    pieces = rng.sample(PIECES, rng.randrange(1, 7))
    data = bytearray()
    while len(data) < length:
        data += rng.choice(pieces) * rng.choice((1, 1, 1, 2, 3, 5, 8, 17, 33, 64, 65, 200))
    return bytes(data[:length])


def dense_data(encoding: str, rng: random.Random, length: int) -> bytes:
    """Runs of the encoding's characters, of which many are just long enough, or just not."""
    unit = UNITS[encoding]
    data = bytearray()
    while len(data) < length:
        data += unit * max(rng.choice(MIN_LENGTHS) + rng.randrange(-1, 2), 0)
        data += rng.choice((b"\1", b"\0", b"\x7f", b"\1\1", b"\0\0\0", b"\xc3"))
    return bytes(data[:length])


@st.composite
def awkward(draw: st.DrawFn) -> bytes:
    """As awkward_data(), but such that Hypothesis can make a failure small."""
    pieces = draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=5, unique=True))
    counts = st.one_of(
        st.integers(1, 4),
        st.integers(1, 70),
        st.sampled_from((63, 64, 65, 127, 128, 129, 1000, 4095, 4096, 4097)),
    )
    some = draw(st.lists(st.tuples(st.sampled_from(pieces), counts), max_size=30))
    # Every rotation of a piece can come first, in every alignment.
    first = draw(st.integers(0, 70)) * b"\0"
    return (first + b"".join(piece * count for piece, count in some))[:MOST]


class Guarded:
    """Memory between two pages that may not be touched."""

    def __init__(self, length: int) -> None:
        pages = -(-length // PAGE_SIZE)
        self.length = pages * PAGE_SIZE
        self._memory = mmap.mmap(-1, self.length + 2 * PAGE_SIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        for at in (address, address + PAGE_SIZE + self.length):
            failed = LIBC.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(PAGE_SIZE), 0)
            assert not failed, os.strerror(ctypes.get_errno())
        self.view = memoryview(self._memory)[PAGE_SIZE : PAGE_SIZE + self.length]

    def first(self, data: bytes) -> memoryview:
        """*data*, behind the first guard."""
        self.view[: len(data)] = data
        return self.view[: len(data)]

    def last(self, data: bytes) -> memoryview:
        """*data*, up to the second guard."""
        self.view[self.length - len(data) :] = data
        return self.view[self.length - len(data) :]


encodings = pytest.mark.parametrize("encoding", list(ENCODINGS))
each_kernel = pytest.mark.parametrize("kernel", kernels())


# --- Kernels find what is right ---------------------------------------------------------------


def test_the_loop_here_finds_what_is_written_here() -> None:
    """A loop that is wrong would hide what a kernel misses."""
    assert strings_of(b"abcd\0ab\tc\x7f", "s", 4, False) == [(0, 4), (5, 9)]
    assert strings_of(b"ab\r\n", "s", 4, False) == []
    assert strings_of(b"ab\r\n", "s", 4, True) == [(0, 4)]
    assert strings_of(b"a\xe9\xff\x80", "S", 4, False) == [(0, 4)]
    assert strings_of(b"xa\0b\0y\0\0\0", "l", 3, False) == [(1, 7)]
    assert strings_of(b"\0a\0bc\0\0d", "b", 2, False) == [(0, 4)]
    assert strings_of(b"a\0\0\0b\0\0\0c\0\0", "L", 2, False) == [(0, 8)]
    assert strings_of(b"\0\0\0\0a\0\0\0b", "B", 2, False) == [(1, 9)]
    assert strings_of("aé€🐍".encode(), "U", 4, False) == [(0, 10)]
    assert strings_of(b"a\xe2\x82b\xff\x80\xbf\x80", "U", 1, False) == [(0, 1), (3, 8)]


@encodings
@hypothesis.seed(SEED)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(data=awkward(), min_length=st.sampled_from(MIN_LENGTHS), whitespace=st.booleans())
def test_every_kernel_equals_the_plain_loop(
    encoding: str, data: bytes, min_length: int, whitespace: bool
) -> None:
    wanted = runs_that_pass(data, encoding, whitespace)(min_length)
    for kernel in kernels():
        found = found_by(kernel, data, encoding, min_length, whitespace)
        assert found == wanted, kernel


@encodings
@pytest.mark.parametrize("whitespace", [False, True], ids=["", "-w"])
def test_every_kernel_equals_the_plain_loop_over_many_strips(
    encoding: str, whitespace: bool, rng: random.Random
) -> None:
    for i in range(6):
        length = rng.randrange(STRIP, MOST) if i else MOST
        data = dense_data(encoding, rng, length) if i % 2 else awkward_data(rng, length)
        wanted = runs_that_pass(data, encoding, whitespace)
        for min_length, kernel in itertools.product(MIN_LENGTHS, kernels()):
            found = found_by(kernel, data, encoding, min_length, whitespace)
            assert found == wanted(min_length), (i, min_length, kernel)


@encodings
def test_random_bytes(encoding: str, rng: random.Random) -> None:
    for _ in range(3):
        data = rng.randbytes(MOST)
        for whitespace in (False, True):
            wanted = runs_that_pass(data, encoding, whitespace)
            for min_length, kernel in itertools.product((1, 2, 4), kernels()):
                found = found_by(kernel, data, encoding, min_length, whitespace)
                assert found == wanted(min_length), (min_length, kernel)


@encodings
def test_strips_of_zeros_around_strings(encoding: str, rng: random.Random) -> None:
    """Strings end, or are cut, where a strip of zeros begins, and begin where one ends."""
    unit = UNITS[encoding]
    for i in range(80):
        min_length = rng.choice(MIN_LENGTHS)
        data = bytearray(7 * STRIP)
        for strip in (2, 5):  # two or three of zeros before and behind each
            text = unit * max(min_length + rng.randrange(-1, 2), 1)
            if rng.random() < 0.3:
                text += rng.choice(PIECES)
            start = strip * STRIP + rng.randrange(-9, 10)
            if rng.random() < 0.5:
                start -= len(text)
            data[start : start + len(text)] = text
        whole = bytes(data)
        cut = rng.choice((2, 3, 5, 6)) * STRIP + rng.choice((-BLOCK, 0, 0, BLOCK))
        wanted = runs_that_pass(whole, encoding, False)(min_length)
        for kernel in kernels():
            stream = Stream(kernel, encoding, min_length, False)
            stream.feed(whole[:cut], False)
            stream.feed(whole[cut:], True)
            assert stream.runs() == wanted, (i, kernel, min_length)


@encodings
@each_kernel
def test_every_byte_is_in_its_class(kernel: str, encoding: str) -> None:
    """Each of the 256 alone, at every place of its character."""
    unit = UNITS[encoding]
    for whitespace, at, byte in itertools.product((False, True), range(len(unit)), range(256)):
        data = unit + unit[:at] + bytes([byte]) + unit[at + 1 :] + unit
        wanted = runs_that_pass(data, encoding, whitespace)(1)
        assert found_by(kernel, data, encoding, 1, whitespace) == wanted, (at, byte)


@encodings
@each_kernel
def test_a_run_in_every_alignment(kernel: str, encoding: str, rng: random.Random) -> None:
    """One run, as long as is looked for or by one shorter or longer, and its place is known."""
    unit, width = UNITS[encoding], WIDTHS[encoding]
    some = [(i, rng.randrange(130)) for i in range(130)]
    for left, right in some + [(b, a) for a, b in some]:
        min_length = rng.choice(MIN_LENGTHS)
        for units in range(min_length - 1, min_length + 2):
            data = b"\1" * left + unit * units + b"\1" * right
            wanted = [(left, left + units * width)] if units else []
            if units < filter_of(encoding, min_length):
                wanted = []
            found = found_by(kernel, data, encoding, min_length, False)
            assert found == wanted, (left, units, right, min_length)


# --- Nothing outside of the data --------------------------------------------------------------


def guard_lengths() -> Iterator[int]:
    yield from range(2 * BLOCK + 3)
    for middle in (4 * BLOCK, 33 * BLOCK, STRIP, STRIP + BLOCK, 2 * STRIP, 3 * STRIP):
        yield from range(middle - 2, middle + 3)


@encodings
def test_nothing_is_read_outside_of_the_data(encoding: str, rng: random.Random) -> None:
    guarded = Guarded(4 * STRIP)
    for length in guard_lengths():
        data = rng.choice((awkward_data(rng, length), dense_data(encoding, rng, length)))
        whitespace, min_length = rng.random() < 0.5, rng.choice(MIN_LENGTHS)
        wanted = runs_that_pass(data, encoding, whitespace)(min_length)
        for place, kernel in itertools.product((guarded.first, guarded.last), kernels()):
            found = found_by(kernel, place(data), encoding, min_length, whitespace)
            assert found == wanted, (kernel, length, min_length)


@encodings
def test_a_piece_in_the_middle_is_not_read_beyond(encoding: str, rng: random.Random) -> None:
    """What a kernel may know of the bytes before and behind a piece is in its finder."""
    guarded = Guarded(4 * STRIP)
    for blocks in (1, 2, 3, 63, 64, 65, 128, 129):
        data = dense_data(encoding, rng, 2 * blocks * BLOCK)
        min_length = rng.choice(MIN_LENGTHS)
        wanted = runs_that_pass(data, encoding, False)(min_length)
        for place, kernel in itertools.product((guarded.first, guarded.last), kernels()):
            stream = Stream(kernel, encoding, min_length, False)
            stream.feed(place(data[: blocks * BLOCK]), False)
            stream.feed(place(data[blocks * BLOCK :]), True)
            assert stream.runs() == wanted, (kernel, blocks, min_length)


class Narrow(Stream):
    """The array of edges lies between guards, up to the second."""

    def __init__(self, guarded: Guarded, capacity: int, *args: object) -> None:
        super().__init__(*args, capacity)
        self._edges = ffi.from_buffer("uint32_t[]", guarded.last(bytes(4 * capacity)))

    def find(self, view: memoryview, last: bool, base: int) -> tuple[int, list[int]]:
        finder, count = self.finder, ffi.new("uint64_t *")
        data = ffi.from_buffer(view)
        taken = lib.fastdump_find(
            finder._kernel, finder._finder, data, len(view), last, base,
            self.capacity, self._edges, count,
        )  # fmt: skip
        assert count[0] <= self.capacity
        return taken, ffi.unpack(self._edges, count[0]) if count[0] else []


# --- Any pieces, any capacity -----------------------------------------------------------------


@encodings
@each_kernel
def test_a_cut_at_any_block_changes_no_edge(kernel: str, encoding: str, rng: random.Random) -> None:
    for min_length in (1, 3, 16, 100, rng.choice(MIN_LENGTHS)):
        data = dense_data(encoding, rng, rng.choice((2 * STRIP, 2 * STRIP + rng.randrange(BLOCK))))
        whole = edges_of(kernel, [data], encoding, min_length, False)
        assert whole == edges_of("scalar", [data], encoding, min_length, False)
        for cut in range(0, len(data) + 1, BLOCK):
            pieces = [data[:cut], data[cut:]]
            assert edges_of(kernel, pieces, encoding, min_length, False) == whole, cut


@encodings
@each_kernel
def test_many_cuts_change_no_edge(kernel: str, encoding: str, rng: random.Random) -> None:
    for i in range(24):
        length = rng.choice((rng.randrange(6 * BLOCK), rng.randrange(MOST), 3 * STRIP))
        data = rng.choice((awkward_data(rng, length), dense_data(encoding, rng, length)))
        places = range(0, length + 1, BLOCK)
        cuts = list(places) if i % 4 == 0 else sorted(rng.choices(places, k=rng.randrange(9)))
        pieces = [data[a:b] for a, b in itertools.pairwise([0, *cuts, length])]
        min_length, whitespace = rng.choice(MIN_LENGTHS), rng.random() < 0.5
        whole = edges_of(kernel, [data], encoding, min_length, whitespace)
        found = edges_of(kernel, pieces, encoding, min_length, whitespace)
        assert found == whole, (i, length, cuts, min_length, whitespace)


@encodings
@each_kernel
def test_one_stream_knows_nothing_of_the_one_before(
    kernel: str, encoding: str, rng: random.Random
) -> None:
    """The last piece ends all runs, though the bytes of the next stream would go on with them."""
    for min_length in MIN_LENGTHS:
        stream = Stream(kernel, encoding, min_length, False)
        for length in (0, 1, BLOCK - 1, BLOCK, 3 * BLOCK, STRIP, STRIP + 1, rng.randrange(MOST)):
            data = (UNITS[encoding] * MOST)[rng.randrange(4) :][:length]
            stream.edges, stream.at = [], 0
            if length % BLOCK == 0:
                stream.feed(data, False)
                stream.feed(b"", True)
            else:
                stream.feed(data, True)
            wanted = runs_that_pass(data, encoding, False)(min_length)
            assert stream.runs() == wanted, (min_length, length)


@encodings
def test_any_capacity_gives_the_same_edges(encoding: str, rng: random.Random) -> None:
    """And what is consumed grows with each call, and nothing is written behind the array."""
    guarded = Guarded(4 * EDGES)
    unit = UNITS[encoding]
    densest = b"".join(unit + b"\1" for _ in range(MOST // (len(unit) + 1)))
    for capacity in (LEAST_EDGES, LEAST_EDGES + 1, 200, 1000, STRIP, STRIP + 16, 4300, EDGES):
        for data in (densest, densest[: 2 * STRIP], dense_data(encoding, rng, MOST)):
            lengths = (1, 2, rng.choice(MIN_LENGTHS))
            for min_length, kernel in itertools.product(lengths, kernels()):
                wanted = runs_that_pass(data, encoding, False)(min_length)
                stream = Narrow(guarded, capacity, kernel, encoding, min_length, False)
                cut = rng.choice((0, STRIP, rng.randrange(0, len(data), BLOCK)))
                stream.feed(data[:cut], False)
                stream.feed(data[cut:], True)
                assert stream.runs() == wanted, (capacity, min_length, kernel)


@encodings
@each_kernel
def test_the_usual_capacity_holds_the_edges_of_a_strip(kernel: str, encoding: str) -> None:
    """Several encodings are scanned in such steps, each by one call."""
    densest = (UNITS[encoding] + b"\1") * STRIP
    for length, last in ((STRIP, False), (STRIP, True), (STRIP - 1, True)):
        stream = Stream(kernel, encoding, 1, False)
        stream.feed(densest[:length], last)
        assert stream.calls == 1


# --- Names ------------------------------------------------------------------------------------


def test_the_plain_kernel_is_the_last_of_several_names() -> None:
    assert kernels()[-1] == "scalar"
    assert len(set(kernels())) == len(kernels())


def test_an_unknown_kernel() -> None:
    with pytest.raises(UsageError, match="there is no kernel 'abacus'"):
        Finder("abacus", "s", 4)
    with pytest.raises(UsageError, match="there is no kernel 'abacus'"):
        Scanner(Query(), kernel="abacus")


def test_a_string_has_a_character_at_least() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        Finder("scalar", "s", 0)


def count_strings(kernel: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastdump", "strings", "-c", path],
        env={**os.environ, "FASTDUMP_KERNEL": kernel}, capture_output=True, text=True,
    )  # fmt: skip


def test_the_environment_names_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"\0".join([b"abcd", b"abc", b"abcde", b"a" * 5000]))
    for name in (*kernels(), ""):
        done = count_strings(name, path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", ""), name


def test_the_environment_names_no_kernel_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abcd")
    done = count_strings("abacus", path)
    assert (done.returncode, done.stdout) == (2, "")
    error, *hints = done.stderr.splitlines()
    assert error == "fastdump: there is no kernel 'abacus' for this CPU"
    assert hints == [f"  hint: kernels here: {', '.join(kernels())}"]


# --- GNU strings ------------------------------------------------------------------------------


def lines_by(kernel: str, data: bytes, query: Query, radix: int) -> bytes:
    """What ``fastdump strings`` prints of *data*, in chunks that are small."""
    scanner = Scanner(query, Form(radix), kernel, chunk_size=STRIP)
    lines = b""
    for found in scanner.feed(data, 0, True):
        if isinstance(found, Giant):
            lines += b"%7x " % found.address if radix else b""
            whole = data[found.address : found.address + found.length]
            lines += text_of(found.encoding, query.unicode, whole) + b"\n"
        else:
            lines += bytes(found.lines)
    return lines


@encodings
def test_lines_are_those_of_gnu_strings(encoding: str, rng: random.Random, tmp_path: Path) -> None:
    """Of UTF-8 the texts only: behind an invalid sequence, -t of GNU strings 2.40 is off."""
    utf8 = encoding == "U"
    options = ["-U", "hex"] if utf8 else ["-e", encoding, "-t", "x"]
    path = tmp_path / "data"
    for i in range(40):
        length = rng.choice((10, 300, 5000, MOST))
        data = rng.choice((awkward_data(rng, length), dense_data(encoding, rng, length)))
        path.write_bytes(data)
        min_length, whitespace = rng.choice(MIN_LENGTHS), rng.random() < 0.3
        words = ["strings", "-a", "-n", str(min_length), *options, *["-w"] * whitespace, path]
        wanted = subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout
        query = Query(min_length, (encoding,), whitespace, "hex")
        for kernel in kernels():
            found = lines_by(kernel, data, query, 0 if utf8 else 16)
            assert found == wanted, (i, kernel, min_length, whitespace)
        if not utf8 and not whitespace:  # the loop that kernels are held against, too
            starts = [int(line.split(maxsplit=1)[0], 16) for line in wanted.splitlines()]
            loop = strings_of(data, encoding, min_length, whitespace)
            assert [start for start, _ in loop] == starts, (i, min_length)
