"""``fastdump search`` and its engine, held against plain Python loops.

FASTDUMP_TEST_SEED repeats a run or makes another.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastdump
from fastdump import patterns
from fastdump._native import AGAIN, EVERY, OURS, PLAIN, Gap, Memory, Slice, address_of, ffi
from fastdump._search import _SLACK, FEW, LONGEST, Hit, Needle, Searcher, Tables, Target
from fastdump._strings import HEAD, kernels
from fastdump.errors import SourceGone, UsageError
from fastdump.expressions import Expression, Windows
from fastdump.memory_search import search_place
from fastdump.place import Place, WholeFile, open_file
from fastdump.process import LiveProcess
from fastdump.region import Range
from test_kernels import Guarded
from test_native import own_mapping, unmapped

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20240711"))
FASTDUMP = (sys.executable, "-m", "fastdump", "search")
PAGE = os.sysconf("SC_PAGESIZE")
LEAST = 2 * LONGEST  # bytes of a chunk
STRIP = 4096
ALPHABETS = (b"\0\1", b"aA", b"\0AabB", bytes(range(256)), b"\0\xff\x7f ")
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 30, 68, 200)

each_kernel = pytest.mark.parametrize("kernel", kernels())


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test and case."""
    print(f"FASTDUMP_TEST_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


# --- What is right ----------------------------------------------------------------------------


def naive(
    data: bytes,
    needles: Sequence[Needle],
    targets: Sequence[Target] = (),
    align: int = 1,
    address: int = 0,
) -> list[tuple[int, int]]:
    """All places, by address and then by pattern."""
    found = []
    for at in range(len(data)):
        if (address + at) % align:
            continue
        for number, value, mask in needles:
            part = data[at : at + len(value)]
            if len(part) == len(value) and all(
                c & m == v for c, m, v in zip(part, mask, value, strict=True)
            ):
                found.append((address + at, number))
        word = data[at : at + 8]
        if (address + at) % 8 == 0 and len(word) == 8:
            pointer = int.from_bytes(word, "little")
            found += [
                (address + at, number) for number, (start, end) in targets if start <= pointer < end
            ]
    return sorted(found)


def plain(*values: bytes) -> list[Needle]:
    return [Needle(n, value, b"\xff" * len(value)) for n, value in enumerate(values)]


def random_needles(rng: random.Random, data: bytes, alphabet: bytes, count: int) -> list[Needle]:
    """Most are somewhere in the data; some have wildcards, nibbles, or letters in both cases."""
    found: list[Needle] = []
    while len(found) < count:
        length = min(rng.choice(LENGTHS), len(data) or 1)
        start = rng.randrange(len(data) - length + 1) if data else 0
        value = data[start : start + length]
        if rng.random() < 0.3 or len(value) < length:
            value = bytes(rng.choices(alphabet, k=length))
        mask = b"\xff" * length
        if rng.random() < 0.4:
            mask = bytes(rng.choice((0xFF, 0xFF, 0xFF, 0xDF, 0xF0, 0x0F, 0)) for _ in value)
        value = bytes(v & m for v, m in zip(value, mask, strict=True))
        if any(value):
            found.append(Needle(len(found), value, mask))
        elif not any(data):
            found.append(Needle(len(found), b"\1", b"\xff"))
    return found


def places(data: bytes | bytearray, values: Sequence[bytes]) -> list[tuple[int, int]]:
    """The same of plain values, faster."""
    return sorted(
        (at.start(), n)
        for n, value in enumerate(values)
        for at in re.finditer(b"(?=" + re.escape(value) + b")", data)
    )


def pairs(hits: Sequence[Hit]) -> list[tuple[int, int]]:
    return [(hit.address, hit.number) for hit in hits]


def fed(
    tables: Tables, kernel: str, data: bytes, cuts: Sequence[int] = (), address: int = 0
) -> list[tuple[int, int]]:
    """What one stream of these pieces gives; and what is counted is as many."""
    found: list[tuple[int, int]] = []
    searchers = [
        Searcher(tables, with_hits, kernel, LEAST, out_size=0) for with_hits in (True, False)
    ]
    edges = [0, *cuts, len(data)]
    for start, end in itertools.pairwise(edges):
        for searcher in searchers:
            for hits in searcher.feed(data[start:end], address + start, 0, end == len(data)):
                found += pairs(hits)
    for searcher in searchers:
        for hits in searcher.feed(b"", address + len(data), 0, True):
            found += pairs(hits)
    numbers = Counter(number for _, number in found)
    for searcher in searchers:
        assert searcher.counts == [numbers[n] for n in range(tables.count)]
    return found


# --- The engine -------------------------------------------------------------------------------


@each_kernel
@pytest.mark.parametrize("count", [1, 2, FEW, FEW + 1, 20, 300])
def test_every_place_of_every_pattern(kernel: str, count: int, rng: random.Random) -> None:
    for _ in range(4 if count > 20 else 12):
        alphabet = rng.choice(ALPHABETS)
        data = bytes(rng.choices(alphabet, k=rng.choice((0, 1, 70, 1500, 2 * STRIP + 77))))
        needles = random_needles(rng, data, alphabet, count)
        if count > 20:
            data = data[:1500]
        align = rng.choice((1, 1, 1, 2, 3, 8))
        address = rng.choice((0, 4096, 0x7F00_0000_1001))
        cuts = sorted(rng.choices(range(len(data) + 1), k=rng.randrange(5)))
        tables = Tables(needles, (), align)
        found = fed(tables, kernel, data, cuts, address)
        assert found == naive(data, needles, (), align, address)


@hypothesis.seed(SEED)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_pieces(draw: st.DataObject) -> None:
    """Such that Hypothesis can make a failure small."""
    letters = st.sampled_from([b"a", b"b", b"\0", b"A"])
    pieces = st.tuples(letters, st.sampled_from((1, 1, 2, 3, 63, 64, 65, 4095, 4096)))
    data = b"".join(c * n for c, n in draw.draw(st.lists(pieces, max_size=12)))[: 3 * STRIP]
    values = st.lists(letters, min_size=1, max_size=9).map(b"".join).filter(any)
    drawn = draw.draw(st.lists(values, min_size=1, max_size=12))
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    wanted = places(data, drawn)
    for kernel in kernels():
        assert fed(Tables(plain(*drawn)), kernel, data, cuts) == wanted, kernel


@each_kernel
def test_a_pattern_in_every_alignment(kernel: str) -> None:
    """Alone, at each place of two blocks, up to the last byte; by anchors and by windows."""
    others = [bytes([200 + n]) * 9 for n in range(20)]
    for value in (b"needle", b"n", b"ne", b"needle in the haystack, and longer than two windows"):
        for needles in (plain(value), plain(value, *others)):
            tables = Tables(needles)
            for before in range(130):
                data = b"." * before + value
                assert fed(tables, kernel, data) == [(before, 0)]
                assert fed(tables, kernel, data[:-1]) == []


def test_many_patterns_are_found_by_windows_at_each_stride(rng: random.Random) -> None:
    strides = set()
    for least in (4, 5, 6, 7, 12):
        values = [rng.randbytes(rng.randrange(least, 20)) for _ in range(200)]
        values[:5] = [value[:least] for value in values[:5]]
        data = b"".join(b"\1" * rng.randrange(9) + value for value in values)
        wanted = places(data, values)
        tables = Tables(plain(*values))
        assert len(tables.windowed) >= 195
        strides.add(tables.stride)
        for kernel in kernels():
            assert fed(tables, kernel, data) == wanted, (least, kernel)
    assert strides == {1, 2, 4}


def test_patterns_without_windows_are_found_among_many(rng: random.Random) -> None:
    """Too short, all wildcards, or mostly zeros."""
    values = [rng.randbytes(12) for _ in range(50)]
    needles = plain(*values, b"\1\2", b"\1" + bytes(7), b"q")
    needles.append(Needle(len(needles), b"\x50\0\x30", b"\xf0\0\xf0"))
    needles += [Needle(len(needles) + n, bytes([n + 1, 0, 9]), b"\xff\0\xff") for n in range(9)]
    tables = Tables(needles)
    assert len(tables.anchored) > FEW
    data = b"".join(values) + b"\1\2" + bytes(100) + b"\1" + bytes(9) + b"\5q\x59xx\x35\5!\t"
    for kernel in kernels():
        assert fed(tables, kernel, data) == naive(data, needles), kernel


@each_kernel
def test_pointers(kernel: str, rng: random.Random) -> None:
    """Aligned ones only; the ends of the range, and the highest words."""
    low, high = 0x7F00_0000_1000, 0x7F00_0000_2000
    targets = [Target(0, Range(low, high)), Target(1, Range(high - 1, high)),
               Target(2, Range(1 << 63, (1 << 64) - 1))]  # fmt: skip
    words = [low - 1, low, high - 1, high, 1 << 63, (1 << 64) - 1, (1 << 64) - 2, 0, 5]
    needles = [Needle(3, b"\x7f\0\0", b"\xff\xff\xff")]
    for _ in range(40):
        data = struct.pack("<300Q", *rng.choices(words, k=300))
        data = rng.randbytes(rng.randrange(8)) + data + rng.randbytes(rng.randrange(8))
        address = rng.randrange(8)
        cuts = sorted(rng.choices(range(len(data)), k=3))
        found = fed(Tables(needles, targets), kernel, data, cuts, address)
        assert found == naive(data, needles, targets, 1, address)
        only = fed(Tables([], targets), kernel, data, cuts, address)
        assert only == naive(data, [], targets, 1, address)


@each_kernel
def test_reads_and_writes_only_what_it_was_given(kernel: str, rng: random.Random) -> None:
    """The buffer ends at a page that may not be touched; longest patterns and full chunks."""
    longest = rng.randbytes(LONGEST)
    values = [longest, *(rng.randbytes(n) for n in (1, 9, 67, 68, 69, 200, 4000))]
    for needles in (plain(*values[:3]), plain(*values)):
        searcher = Searcher(Tables(needles), kernel=kernel, chunk_size=LEAST)
        size = HEAD + searcher._search.size + _SLACK
        guarded = Guarded(size)
        searcher._search.buffer = ffi.cast(
            "unsigned char *", address_of(guarded.view) + guarded.length - size
        )
        data = rng.randbytes(5000) + b"".join(values) + rng.randbytes(LEAST)
        data += longest[: -len(data) % LEAST] + longest
        found = [hit for part in searcher.feed(data, 0, 0, True) for hit in pairs(part)]
        assert found == places(data, [needle.value for needle in needles])


@each_kernel
def test_dense_matches_fill_any_output(kernel: str) -> None:
    """More matches than bytes, in order, though some filters find them later than others."""
    needles = plain(*(b"a" * n for n in range(1, 12)))
    needles.append(Needle(11, b"A", b"\xdf"))
    data = b"a" * (3 * LEAST + 5)
    found = fed(Tables(needles, [Target(12, Range(1, 1 << 63))]), kernel, data)
    wanted = [
        (at, n)
        for at in range(len(data))
        for n in range(13)
        if (at % 8 == 0 if n == 12 else True)
        and at + (8 if n == 12 else 1 if n == 11 else n + 1) <= len(data)
    ]
    assert found == wanted


# --- Slices, pieces, gaps, zeros --------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[WholeFile]:
    with contextlib.closing(WholeFile.of(str(path), open_file(str(path)))) as place:
        yield place


def in_pieces(place: Place, tables: Tables, sizes: Iterator[int], kernel: str) -> list[Any]:
    searcher = Searcher(tables, kernel=kernel, chunk_size=LEAST)
    found = [
        hit
        for piece in place.pieces(sizes)
        for hits in searcher.scan(place.memory, place.batches(piece.slices), piece.start, piece.end)
        for hit in pairs(hits)
    ]
    assert searcher.tally.accounted == place.selected
    return found


@each_kernel
def test_pieces_cut_anywhere_give_what_the_whole_gives(
    kernel: str, rng: random.Random, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    values = [rng.randbytes(n) for n in (1, 3, 8, 100, LONGEST)]
    for _ in range(6):
        data = bytearray(rng.randbytes(rng.randrange(6 * PAGE, 12 * PAGE)))
        for value in values:
            for at in [
                page + rng.randrange(-len(value), 1) for page in range(PAGE, len(data), PAGE)
            ]:
                if at >= 0 and at + len(value) <= len(data) and rng.random() < 0.6:
                    data[at : at + len(value)] = value
        path.write_bytes(data)
        needles = plain(*values)
        wanted = places(data, values)
        with whole_file(path) as place:
            sizes = iter(lambda: rng.randrange(1, 4) * PAGE, None)
            assert in_pieces(place, Tables(needles), sizes, kernel) == wanted


@each_kernel
def test_holes_are_zeros(kernel: str, tmp_path: Path) -> None:
    """The same is found whether zeros are stored or not; up to the end of the file."""
    data = bytearray(40 * PAGE + 100)
    data[:2] = b"\xd2\x04"  # u32:1234 at the start,
    data[5 * PAGE - 2 : 5 * PAGE] = b"\xd2\x04"  # in front of a hole of one page,
    data[6 * PAGE : 6 * PAGE + 1] = b"\x09"  # which a pattern of 4096 bytes ends in,
    data[20 * PAGE] = 7  # behind holes,
    data[-PAGE - 100 - 1 - 100] = 0xD2  # near the end,
    data[-1] = 7  # and at it
    sparse, stored = tmp_path / "sparse", tmp_path / "stored"
    stored.write_bytes(data)
    with sparse.open("wb") as file:
        for page in range(0, len(data), PAGE):
            if any(data[page : page + PAGE]):
                file.seek(page)
                file.write(data[page : page + PAGE])
        file.truncate(len(data))
    needles = plain(b"\xd2\4\0\0", bytes(LONGEST - 1) + b"\x09", bytes(3) + b"\7", b"\7",
                    b"\xd2" + bytes(LONGEST - 1), b"\4" + bytes(LONGEST - 1))  # fmt: skip
    wanted = places(data, [needle.value for needle in needles])
    assert len(wanted) >= 7
    for path in (sparse, stored):
        for size in (PAGE, 7 * PAGE, 1 << 30):
            with whole_file(path) as place:
                sizes = iter(lambda size=size: size, None)
                assert in_pieces(place, Tables(needles), sizes, kernel) == wanted, (path, size)


def test_less_than_a_page_of_hole_ends_where_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "data"
    for rest in (1, 3, 100, PAGE - 1, PAGE, PAGE + 1):
        path.write_bytes(bytes(PAGE - 1) + b"\5")
        os.truncate(path, PAGE + rest)
        found = [m.address for m in fastdump.search(path, [b"\5" + bytes(n) for n in (2, 100)])]
        assert found == [PAGE - 1] * sum(rest >= n for n in (2, 100))


def ours(data: bytes, address: int, region: int = 0, flags: int = 0) -> Slice:
    return Slice(address, len(data), address, PLAIN | OURS | flags, -1, address_of(data), region)


@each_kernel
def test_nothing_is_found_across_gaps_and_regions(kernel: str) -> None:
    left, right = b"." * (PAGE - 4) + b"need", b"les" + b"." * (PAGE - 7) + b"need"
    one, two = 0x10000, 0x10000 + PAGE
    tables = Tables(plain(b"needles", b"need", b"les"))
    ends = [(two - 4, 1), (two, 2), (two + PAGE - 4, 1)]

    def found(batches: list[Any]) -> list[tuple[int, int]]:
        searcher = Searcher(tables, kernel=kernel)
        return [hit for hits in searcher.scan(Memory.of_files(), batches) for hit in pairs(hits)]

    assert found([[ours(left, one), ours(right, two)]]) == [(two - 4, 0), *ends]
    assert found([[ours(left, one)], [ours(right, two)]]) == [(two - 4, 0), *ends]
    assert found([[ours(left, one), ours(right, two, region=1)]]) == ends
    far = [(at + PAGE * (at >= two), n) for at, n in ends]
    assert found([[ours(left, one), ours(right, two + PAGE)]]) == far
    gap = Gap(two, two + PAGE, "lost")
    assert found([[ours(left, one)], gap, [ours(right, two + PAGE)]]) == far
    again = [ours(left, one, flags=AGAIN), ours(right, two)]
    searcher = Searcher(tables, kernel=kernel)
    hits = [h for hs in searcher.scan(Memory.of_files(), [again], two) for h in pairs(hs)]
    assert hits == ends[1:]


def test_what_cannot_be_read_is_not_taken_for_zeros(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"." * (2 * PAGE - 2) + b"\xd2\4" + b"." * 2 * PAGE)
    with whole_file(path) as place:
        os.truncate(path, 2 * PAGE)
        wanted = [patterns.parse("u32:1234"), patterns.parse("uint16:1234")]
        for found in (wanted, [*wanted, patterns.parse("regex:\\xd2\\x04\\x00")]):
            report = search_place(place, found)
            assert report.counts == [0, 1, 0][: len(found)]
            assert [tuple(gap[:2]) for gap in report.gaps] == [(2 * PAGE, 4 * PAGE)]
            assert report.exit_code == 3


@each_kernel
@pytest.mark.parametrize("bad", [0, 5, 17, 63])
def test_a_page_that_has_gone_since_it_was_asked_for_breaks_a_match(kernel: str, bad: int) -> None:
    """One page is unmapped, and what lies on both sides of it is found up to it."""
    memory, address = own_mapping(64)
    token = b"\x37\xd2\4\0"
    for page in range(65):  # a token over each edge of a page, its last byte on the second one
        start = max(page * PAGE - 3, 0)
        memory[start : min(start + 4, len(memory))] = token[: len(memory) - start]
    needles = plain(token, token[:3])
    wanted = []
    for page in range(65):
        start = address + max(page * PAGE - 3, 0)
        # Over the edge into the missing page it lacks its last byte, over the other one all but.
        if page not in (bad, bad + 1, 64):
            wanted += [(start, 0), (start, 1)]
        elif page not in (0, bad + 1):
            wanted += [(start, 1)]
    with LiveProcess(os.getpid()) as process:
        searcher = Searcher(Tables(needles), kernel=kernel, chunk_size=16 * PAGE)
        whole = Slice(address, 64 * PAGE, address, EVERY)
        with unmapped(address + bad * PAGE):
            found = [h for hits in searcher.scan(process.memory, [[whole]]) for h in pairs(hits)]
    assert [(gap.start, gap.end) for gap in searcher.gaps] == [
        (address + bad * PAGE, address + (bad + 1) * PAGE)
    ]
    assert searcher.tally.accounted == 64 * PAGE
    assert found == wanted


# --- Regular expressions ----------------------------------------------------------------------


def naive_expression(source: bytes, data: bytes, address: int = 0) -> list[tuple[int, int]]:
    """Places and lengths, by the words of ``expressions.py``."""
    regex, found, at = re.compile(source), [], 0
    while at < len(data):
        match = regex.match(data, at, at + LONGEST)
        if match and any(match[0]):
            found.append((address + at, match.end() - at))
            at = match.end()
        else:
            at += 1
    return found


EXPRESSIONS = (
    b"ab", b"a+b", b"(?:ab|a)c?", b"[ab]{2,5}", b"a.*b", b"(?s:a.*?b)", b"\\0+a", b"a\\0*",
    b"(?<=b)a", b"(?<!\\0)a+", b"\\ba{1,9}\\b", b"^ab", b"(?m:^a)", b"a(?=b)", b"a{1,50}(?!b)",
    b"a{1,20}$", b"(a)(b)\\1", b"[^a]{3}", b"(?i:AB)c", b"a*", b"abc[ab]*",
)  # fmt: skip


@pytest.mark.parametrize("source", EXPRESSIONS)
def test_expressions_do_not_depend_on_where_chunks_end(source: bytes, rng: random.Random) -> None:
    expression = Expression("", source)
    for _ in range(8):
        pieces = (b"a", b"b", b"c", b"\0", b"\n", b"ab", b"abc", b"\0" * 70, b"a" * 70)
        data = b"".join(rng.choices(pieces, k=rng.choice((10, 300, 3000))))
        wanted = naive_expression(source, data, 4096)
        windows = Windows([(5, expression)])
        windows.begin(4096)
        found, at = [], 0
        while at < len(data):
            size = rng.choice((1, 64, 1000, 5000)) if len(data) < 2000 else rng.choice((4096, 9999))
            found += windows.feed(data[at : at + size])
            at += size
        found += windows.feed(b"", last=True)
        assert [(address, length) for address, _, length in found] == wanted
        assert {number for _, number, _ in found} <= {5}


def test_a_match_has_a_greatest_length() -> None:
    for length in (LONGEST - 1, LONGEST, LONGEST + 1, 3 * LONGEST):
        data = b"." + b"a" * length + b"b."
        for source in (b"a+", b"a+b", b"[ab]*"):
            windows = Windows([(0, Expression("", source))])
            found = [
                m for at in range(0, len(data), 999) for m in windows.feed(data[at : at + 999])
            ]
            found += windows.feed(b"", last=True)
            wanted = naive_expression(source, data)
            assert [(address, size) for address, _, size in found] == wanted


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"a(", "missing"),
        (b"a+$", "has no limit"),
        (b"\\w+\\b", "has no limit"),
        (b"a*(?!b)", "has no limit"),
        (b"(?!b)a*", "has no limit"),
        (b"a{1,5000}\\Z", "has no limit"),
        (b"(?<=" + b"a" * 5000 + b")b", "looks back"),
    ],
)
def test_expressions_that_are_refused(source: bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Expression("x", source)


def test_the_literal_that_an_expression_begins_with() -> None:
    assert Expression("", b"password=\\w+").prefix == b"password="
    assert Expression("", b"a|b").prefix == b""
    assert Expression("", b"ab?").prefix == b"a"
    assert Expression("", b"(?i)ab").prefix == b""


def test_expressions_beside_other_patterns(tmp_path: Path, rng: random.Random) -> None:
    """In one order; over holes, and over chunks of a MiB."""
    path = tmp_path / "data"
    data = bytearray(3 << 20)
    for at in sorted(rng.sample(range(0, len(data) - 9, 3), 400)):
        data[at : at + 5] = rng.choice((b"abab.", b"ba...", b"xab\0y"))
    for at in ((1 << 20) - 2, (2 << 20) - 1):
        data[at : at + 4] = b"abab"
    path.write_bytes(data)
    with path.open("r+b") as file:  # zeros, stored or not
        file.truncate(len(data) + 3 * PAGE)
    texts = ["regex:(ab)+", "ab", "regex:\\x00b", "hex:6? 00"]
    found = [(m.address, m.length, m.pattern) for m in fastdump.search(path, texts)]
    whole = bytes(data) + bytes(3 * PAGE)
    order = {text: n for n, text in enumerate(texts)}
    wanted = [(at, n, texts[0]) for at, n in _jumps(b"(ab)+", whole)]
    wanted += [(at, n, texts[2]) for at, n in _jumps(b"\\0b", whole)]
    wanted += [(m.start(), 2, "ab") for m in re.finditer(b"(?=ab)", whole)]
    wanted += [(m.start(), 2, texts[3]) for m in re.finditer(b"(?=[`-o]\\0)", whole)]
    assert found == sorted(wanted, key=lambda match: (match[0], order[match[2]]))


def _jumps(source: bytes, data: bytes) -> list[tuple[int, int]]:
    return [(m.start(), len(m[0])) for m in re.finditer(source, data)]


# --- Patterns as users write them -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "mask"),
    [
        ("hello", b"hello", b"\xff" * 5),
        ("http://x", b"http://x", b"\xff" * 8),
        ("text:u32:5", b"u32:5", b"\xff" * 5),
        ("é", b"\xc3\xa9", b"\xff\xff"),
        ("u16:hé", b"h\0\xe9\0", b"\xff" * 4),
        ("hex:de ad ?? eF", b"\xde\xad\0\xef", b"\xff\xff\0\xff"),
        ("hex:d?AD?f", b"\xd0\xad\x0f", b"\xf0\xff\x0f"),
        ("u8:0x41", b"A", b"\xff"),
        ("i8:-1", b"\xff", b"\xff"),
        ("uint16:513", b"\1\2", b"\xff\xff"),
        ("int16:-2", b"\xfe\xff", b"\xff\xff"),
        ("u32:1234", b"\xd2\4\0\0", b"\xff" * 4),
        ("i32:-5", b"\xfb\xff\xff\xff", b"\xff" * 4),
        ("u64:0xdeadbeef", b"\xef\xbe\xad\xde\0\0\0\0", b"\xff" * 8),
        ("i64:-1", b"\xff" * 8, b"\xff" * 8),
        ("f32:0.5", struct.pack("<f", 0.5), b"\xff" * 4),
        ("f64:-1e300", struct.pack("<d", -1e300), b"\xff" * 8),
    ],
)
def test_patterns(text: str, value: bytes, mask: bytes) -> None:
    assert patterns.parse(text) == patterns.Bytes(text, value, mask)


def test_patterns_in_both_cases() -> None:
    assert patterns.parse("a1-Z", True) == patterns.Bytes("a1-Z", b"A1-Z", b"\xdf\xff\xff\xdf")
    # U+0161 has the low byte of "a", and no second case here.
    assert patterns.parse("u16:aš", True)[1:] == (b"A\0\x61\1", b"\xdf\xff\xff\xff")
    assert patterns.parse("hex:61", True)[1:] == (b"a", b"\xff")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("text:", "is empty"),
        ("hex:", "is empty"),
        ("ptr:", "is empty"),
        ("hex:abc", "not hexadecimal"),
        ("hex:xy", "not hexadecimal"),
        ("hex:00 00", "found in zeros"),
        ("hex:?? ??", "found in zeros"),
        ("hex:0? ??", "found in zeros"),
        ("u32:0", "found in zeros"),
        ("u32:-1", "is no u32"),
        ("u8:256", "is no u8"),
        ("u32:x", "is no u32"),
        ("f32:1e99", "is no f32"),
        ("x" * 4097, "the most is 4096"),
    ],
)
def test_patterns_that_are_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        patterns.parse(text)
    assert says in f"{caught.value} {caught.value.hint}"


# --- The command ------------------------------------------------------------------------------


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def run(*args: object, **options: Any) -> Outcome:
    """``fastdump search``; never a traceback."""
    words = [*FASTDUMP, *map(str, args)]
    done = subprocess.run(words, capture_output=True, text=True, **options)
    assert "Traceback" not in done.stderr, done.stderr
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(b"-needle, Needle, needles\0" + b"\xd2\4\0\0" + b"." * 20 + b"\x1b[31m")
    return path


def test_a_line_for_each_match(path: Path) -> None:
    done = run(path, "needle")
    assert done == (0, (
        f"1  {path} (file)  6e 65 65 64 6c 65 2c 20  4e 65 65 64 6c 65 2c 20  |needle, Needle, |\n"
        f"11  {path} (file)  6e 65 65 64 6c 65 73 00  d2 04 00 00 2e 2e 2e 2e  |needles.........|\n"
    ), "")  # fmt: skip
    lines = run(path, "-i", "needle", "u32:1234").out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["1", "9", "11", "19"]
    assert [line.split("  ")[2] for line in lines] == ["needle"] * 3 + ["u32:1234"]
    last = run(path, "hex:1b5b").out
    assert "\x1b" not in last
    assert "1b 5b 33 31 6d" in last


def test_context(path: Path) -> None:
    assert run(path, "Needle", "-C", "3").out == (
        f"9  {path} (file)\n"
        "    0000000000000000                    65 2c  20 4e 65 65 64 6c 65 2c  "
        "|      e, Needle,|\n"
        "    0000000000000010  20 6e                                             | n|\n"
    )


def test_counts_and_limits(path: Path) -> None:
    assert run(path, "needle", "-c") == (0, "2\n", "")
    assert run(path, "needle", "x9", "-c").out == "2  needle\n0  x9\n"
    assert run(path, "x9", "-c") == (1, "0\n", "")
    assert len(run(path, "-i", "needle", "-m", "2").out.splitlines()) == 2
    assert run(path, "needle", "-q") == (0, "", "")
    assert run(path, "nothing", "-q") == (1, "", "")
    assert run(path, "nothing") == (1, "", "")
    assert len(run(path, "regex:[nN]ee", "-m", "2").out.splitlines()) == 2
    assert run(path, "hex:65", "-c", "--align", "2").out == "6\n"
    assert re.search(r"; 2 matches\n", run(path, "needle", "-c", "--stats").err)


def test_json(path: Path) -> None:
    rows = [
        json.loads(line)
        for line in run(path, "--json", "regex:need\\w+", "u32:1234").out.splitlines()
    ]
    assert rows[0] == {
        "address": "0x1",
        "length": 6,
        "pattern": "regex:need\\w+",
        "bytes": b"needle".hex(),
        "region": "0x0",
        "path": str(path),
        "label": "file",
    }
    assert [row["length"] for row in rows] == [6, 7, 4]
    row = json.loads(run(path, "--json", "-C", "2", "Needle").out)
    assert row["context"] == {"address": "0x7", "bytes": b", Needle, ".hex()}


def test_patterns_of_a_file(path: Path, tmp_path: Path) -> None:
    listed = tmp_path / "patterns"
    listed.write_text("needle\n\nu32:1234\nneedle\n")
    assert run(path, "-f", listed, "-c").out == "2  needle\n1  u32:1234\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "no PATTERN"),
        (("hex:zz",), "not hexadecimal"),
        (("hex:00",), "found in zeros"),
        (("regex:(",), "regex:("),
        (("ptr:nosuch",), "neither an address nor the name of a region"),
        (("x", "-c", "-m", "1"), "cannot be combined"),
        (("x", "--yara", __file__), "--yara takes no PATTERN"),
    ],
)
def test_usage(path: Path, args: tuple[str, ...], says: str) -> None:
    done = run(path, *args)
    assert (done.code, done.out) == (2, "")
    assert says in done.err


def test_what_is_no_source(tmp_path: Path) -> None:
    assert run(tmp_path / "nothing", "x").code == 2
    assert "no regular file" in run("/dev/zero", "x").err
    refused = run("/proc/self/environ", "x")
    assert (refused.code, refused.out) == (2, "")
    assert "no regular file of a known size" in refused.err
    unreadable = run(__file__, "-f", "/proc/self/mem")
    assert (unreadable.code, unreadable.out) == (6, "")
    assert "cannot read /proc/self/mem: Input/output error" in unreadable.err
    assert run(4194305, "x").code == SourceGone.exit_code


def test_head_ends_it_quietly(path: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(path.read_bytes() * 50_000)
    script = '"$@" | head -2'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *FASTDUMP, large, "needle"], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 2


# --- A live process ---------------------------------------------------------------------------

TARGET = """
import ctypes, json, mmap, sys
page = mmap.PAGESIZE
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
start = libc.mmap(None, 64 * page, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
def put(at, data):
    ctypes.memmove(start + at, data, len(data))
token = bytes(c ^ 0x55 for c in bytes.fromhex(sys.argv[1]))
put(3 * page - 2, (51966).to_bytes(2, "little"))        # its other half is never touched
put(9 * page + 5, b"\\xfe\\xca\\x00\\x00")
put(20 * page - 5, token)
put(30 * page, (start + 100).to_bytes(8, "little"))
put(30 * page + 17, (start + 100).to_bytes(8, "little"))  # not aligned
put(64 * page - len(token), token)
print(json.dumps({"start": start, "end": start + 64 * page}), flush=True)
sys.stdin.read()
"""


class Live(NamedTuple):
    pid: int
    start: int
    end: int
    token: bytes

    @property
    def only(self) -> tuple[str, ...]:
        return ("--exclude", "????", "--include", f"{self.start:x}-{self.end:x}")


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    token = random.Random(SEED).randbytes(12)
    hidden = bytes(c ^ 0x55 for c in token).hex()  # so that it is nowhere else
    with subprocess.Popen(
        [sys.executable, "-c", TARGET, hidden], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        told = json.loads(process.stdout.readline())
        yield Live(process.pid, told["start"], told["end"], token)
        process.communicate()


def test_a_live_process(live: Live) -> None:
    wanted = [live.start + 20 * PAGE - 5, live.end - 12]
    found = [m.address for m in fastdump.search(live.pid, [live.token])]
    assert [at for at in found if live.start <= at < live.end] == wanted
    lines = run(live.pid, f"hex:{live.token.hex()}", *live.only).out.splitlines()
    assert [int(line.split()[0], 16) for line in lines] == wanted


def test_a_match_reaches_into_memory_that_was_never_touched(live: Live) -> None:
    wanted = [live.start + 3 * PAGE - 2, live.start + 9 * PAGE + 5]
    for pattern in ("u32:51966", "regex:\\xfe\\xca\\x00\\x00"):
        rows = [
            json.loads(x) for x in run(live.pid, pattern, "--json", *live.only).out.splitlines()
        ]
        assert [int(row["address"], 16) for row in rows] == wanted
        assert {row["bytes"] for row in rows} == {"feca0000"}
        assert {row["label"] for row in rows} == {"anonymous"}


def test_pointers_into_a_live_process(live: Live) -> None:
    at = live.start + 100
    for pattern in (f"ptr:{at:x}", f"ptr:0x{at:x}", f"ptr:{at - 3:x}+4", f"ptr:{at:x}-{at + 1:x}"):
        lines = run(live.pid, pattern, *live.only).out.splitlines()
        assert [int(line.split()[0], 16) for line in lines] == [live.start + 30 * PAGE], pattern
    assert run(live.pid, f"ptr:{at - 1:x}", *live.only).code == 1
    assert run(live.pid, f"ptr:{at - 3:x}+3", *live.only).code == 1
    done = run(live.pid, "ptr:[heap]", "ptr:libc.so.6", "-c")
    assert all(int(line.split()[0]) > 0 for line in done.out.splitlines())


def test_what_is_found_in_a_dump_is_what_is_found_in_the_process(
    live: Live, tmp_path: Path
) -> None:
    names = [
        "u32:51966",
        f"hex:{live.token.hex()}",
        f"ptr:{live.start + 100:x}",
        "regex:\\xfe\\xca+",
    ]
    wanted = run(live.pid, *names, "--json", *live.only)
    assert wanted.code == 0
    for kind in ("lz4", "core", "raw"):
        output = tmp_path / kind
        words = ["dump", str(live.pid), "-f", kind, "-o", str(output), "-q", "--all"]
        subprocess.run([sys.executable, "-m", "fastdump", *words], check=True)
        assert run(output, *names, "--json", *live.only).out == wanted.out, kind


# --- YARA -------------------------------------------------------------------------------------

RULES = """
rule text { strings: $a = "needle" $b = { d2 04 } condition: any of them }
rule absent { strings: $a = "nowhere" condition: $a }
"""


def test_yara(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("yara_x")
    rules = tmp_path / "rules.yar"
    rules.write_text(RULES)
    lines = run(path, "--yara", rules).out.splitlines()
    assert [(line.split("  ")[0], line.split("  ")[2]) for line in lines] == [
        ("1", "text:$a"),
        ("11", "text:$a"),
        ("19", "text:$b"),
    ]
    assert run(path, "--yara", rules, "-c").out == "2  text:$a\n1  text:$b\n"
    rules.write_text("rule absent { condition: false }")
    assert run(path, "--yara", rules) == (1, "", "")
    rules.write_text("rule {")
    assert run(path, "--yara", rules).code == 2


SPARSE_RULES = """
rule bare { condition: filesize > 0 }
rule zeros { strings: $a = { 00 00 00 00 6e } $b = { 00 00 00 00 } condition: any of them }
"""


def test_rules_without_a_pattern_and_those_of_zeros(tmp_path: Path) -> None:
    """In a file with holes: what matches in nothing but a hole is not told."""
    pytest.importorskip("yara_x")
    rules, path = tmp_path / "rules.yar", tmp_path / "sparse"
    rules.write_text(SPARSE_RULES)
    start = 1 << 20
    with path.open("wb") as file:
        file.truncate(2 << 20)
        os.pwrite(file.fileno(), b"needle" * 1000, start)
    assert path.stat().st_blocks * 512 < 1 << 20
    found = [json.loads(line) for line in run(path, "--yara", rules, "--json").out.splitlines()]
    bare, before, *behind = [(int(row["address"], 16), row["pattern"]) for row in found]
    assert [bare, before] == [(start, "bare"), (start - 4, "zeros:$a")]
    assert {name for _, name in behind} == {"zeros:$b"}
    assert min(behind)[0] == start + 6000
    assert max(behind)[0] < start + 2 * PAGE
    for options in ((), ("-C", "8"), ("-C", "0"), ("-m", "1")):
        lines = run(path, "--yara", rules, *options)
        assert lines.code == 0
        assert lines.out.startswith(f"{start:x}  {path} (file)  bare")
    first = run(path, "--yara", rules, "-m", "1").out
    assert first.endswith("  |needleneedleneed|\n")
    assert run(path, "--yara", rules, "-c").out.splitlines()[0] == "1  bare"


def test_blocks_of_yara_overlap(rng: random.Random) -> None:
    yara_x = pytest.importorskip("yara_x")
    from fastdump.yara import RulesSearcher

    data = bytearray(200_000)
    wanted = sorted({at // 7 * 7 for at in rng.sample(range(len(data) - 7), 2000)})
    for at in wanted:
        data[at : at + 6] = b"needle"
    rules = yara_x.compile('rule r { strings: $a = "needle" condition: $a }')
    searcher = RulesSearcher(rules, block_size=5000, overlap=100)
    whole = bytes(data)
    batches = [[ours(whole, 1 << 20)]]
    found = [h for hits in searcher.scan(Memory.of_files(), batches) for h in hits]
    assert [hit.address - (1 << 20) for hit in found] == wanted
    assert searcher.names == ["r:$a"]


def test_yara_that_is_not_there(path: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yar"
    rules.write_text(RULES)
    (tmp_path / "yara_x.py").write_text("raise ImportError")
    done = run(path, "--yara", rules, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.code == 2
    assert "pip install yara-x" in done.err
