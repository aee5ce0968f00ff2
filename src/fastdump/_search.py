"""The part of the C extension that searches for patterns: thin, typed wrappers over
``csrc/api.h``, and the tables that it is given."""

from __future__ import annotations

import itertools
import math
import struct
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastdump._native import (
    _GAP_CAPACITY,
    MORE,
    Gap,
    Memory,
    Slice,
    Tally,
    _c_slices,
    _check,
    _take_gaps,
    _tally_of,
    aligned_buffer,
    ffi,
    lib,
)
from fastdump._strings import CHUNK_SIZE, HEAD, _cast, default_kernel, kernel_number
from fastdump.region import Range

LONGEST: int = lib.FASTDUMP_LONGEST
_FARTHEST: int = lib.FASTDUMP_FARTHEST
_SLACK: int = lib.FASTDUMP_SLACK
_NO_LIMIT = 2**64 - 1
_MOST_ROOM = 16 << 20

# So many patterns are found by anchors as fast as by windows.
FEW = 4
_WINDOW = 4
_STRIDES = (1, 2, 4)
_WORD = 8


class Needle(NamedTuple):
    """Where ``(memory & mask) == value``."""

    number: int
    value: bytes
    mask: bytes


class Target(NamedTuple):
    """Aligned words with an address in the range."""

    number: int
    range: Range


class Hit(NamedTuple):
    """A match: of which pattern, in which region, and its length in bytes."""

    address: int
    number: int
    region: int
    length: int


_HIT = struct.Struct("<QII")  # struct fastdump_hit of csrc/api.h


def _commonness() -> list[float]:
    """How often each byte is met in memory, roughly: zeros, small numbers, text, the high bytes
    of addresses.
    """
    weights = [1.0] * 256
    for first, last, weight in ((1, 8, 6.0), (0x30, 0x39, 8.0), (0x55, 0x56, 8.0)):
        weights[first : last + 1] = [weight] * (last + 1 - first)
    for place, letter in enumerate(b"etaoinsrhldcumfpgwybvkxjqz"):
        weights[letter] = 26.0 - place
        weights[letter - 0x20] = max(weights[letter - 0x20], 6.0 - place / 5)
    for byte, weight in ((0, 300.0), (0x20, 30.0), (0x7F, 20.0), (0xFF, 20.0)):
        weights[byte] = weight
    total = sum(weights)
    return [weight / total for weight in weights]


_COMMON = _commonness()


def _likelihood(value: int, mask: int) -> float:
    """Of a byte to be *value* where *mask* says."""
    return sum(_COMMON[byte] for byte in range(256) if byte & mask == value)


def _anchors(needle: Needle, known: dict[tuple[int, int], float]) -> tuple[int, int]:
    """The places of its two rarest bytes; twice the same if it has no other."""
    for pair in zip(needle.value, needle.mask, strict=True):
        if pair not in known:
            known[pair] = _likelihood(*pair)
    ranked = sorted(range(len(needle.value)), key=lambda i: known[needle.value[i], needle.mask[i]])[
        :2
    ]
    return ranked[0], ranked[-1]


def _longest_run(usable: Sequence[bool]) -> int:
    return max((len(list(run)) for yes, run in itertools.groupby(usable) if yes), default=0)


class Tables:
    """Patterns as C wants them; threads may share it.

    Args:
        align: Of the addresses of matches.
    """

    def __init__(
        self, needles: Sequence[Needle], targets: Sequence[Target] = (), align: int = 1
    ) -> None:
        self.align = align
        numbers = [needle.number for needle in needles] + [target.number for target in targets]
        self.count = 1 + max(numbers, default=-1)
        self.lengths = [_WORD] * self.count
        for needle in needles:
            self.lengths[needle.number] = len(needle.value)
        self.longest = max(
            [len(needle.value) for needle in needles] + [_WORD] * bool(targets), default=1
        )
        # Of patterns with the same mask only equal ones are found at the same address.
        groups: dict[bytes, Counter[bytes]] = defaultdict(Counter)
        for needle in needles:
            groups[needle.mask][needle.value] += 1
        self.most = len(targets) + sum(max(group.values()) for group in groups.values())
        self.fold = 0xFF
        if any(m not in (0, 0xFF) and m & 0xDF == 0xDF for n in needles for m in n.mask):
            self.fold = 0xDF  # letters in both cases
        # The patterns with the shortest runs of windows come first. A few of them by anchors, and
        # the stride of all others may be longer.
        found = [(_longest_run(self._usable(needle)), needle) for needle in needles]
        found.sort(key=lambda item: item[0])
        ordered = [needle for _, needle in found]
        strides = [max((s for s in _STRIDES if s <= run), default=0) for run, _ in found]
        without = strides.count(0)
        anchored = len(ordered)
        if anchored > max(FEW, without):
            some = range(without, max(FEW, without) + 1)
            anchored = max(some, key=lambda count: (strides[count], -count))
        self.anchored, self.windowed = ordered[:anchored], ordered[anchored:]
        self.stride = strides[anchored] if self.windowed else 0
        self._make(targets)

    def _usable(self, needle: Needle) -> list[bool]:
        """Of which places a window can be looked up: its bits are fixed, and it is not zero."""
        fixed = [m & self.fold == self.fold for m in needle.mask]
        value = [v & self.fold for v in needle.value]
        last = min(len(value) - _WINDOW, _FARTHEST)
        return [all(fixed[i : i + _WINDOW]) and any(value[i : i + _WINDOW])
                for i in range(last + 1)]  # fmt: skip

    def _offset(self, needle: Needle) -> int:
        """Of the first of its windows: those that are met least."""
        usable = self._usable(needle)
        weights = [
            math.prod(_COMMON[v] for v in needle.value[i : i + _WINDOW]) if yes else 1.0
            for i, yes in enumerate(usable)
        ]
        sums = [sum(weights[i : i + self.stride]) for i in range(len(usable) - self.stride + 1)]
        return sums.index(min(sums))

    def _make(self, targets: Sequence[Target]) -> None:
        """The arrays of struct fastdump_search."""
        values, masks = bytearray(), bytearray()
        known: dict[tuple[int, int], float] = {}
        patterns = []
        for needle in (*self.anchored, *self.windowed):
            anchors = _anchors(needle, known)
            patterns.append((len(values), len(needle.value), needle.number, anchors))
            padding = bytes(-len(needle.value) % 8)
            values += needle.value + padding
            masks += needle.mask + padding
        self.patterns = ffi.new("struct fastdump_pattern[]", patterns)
        self.values = ffi.new("unsigned char[]", bytes(values) or b"\0")
        self.masks = ffi.new("unsigned char[]", bytes(masks) or b"\0")
        self.targets = ffi.new(
            "struct fastdump_pointers[]",
            [(t.range.start, t.range.end - t.range.start, t.number, 0) for t in targets],
        )
        windows = []
        fold = int.from_bytes([self.fold] * _WINDOW, "little")
        for index, needle in enumerate(self.windowed, len(self.anchored)):
            first = self._offset(needle)
            for offset in range(first, first + self.stride):
                found = int.from_bytes(needle.value[offset : offset + _WINDOW], "little") & fold
                windows.append((found, index, offset))
        self.span = max((offset for _, _, offset in windows), default=0)
        # A bit in 256 is set at the most: of memory that has no match, few windows pass. Up to 18
        # bits it fits a cache of the first level.
        self.hash_bits = min(max(len(windows).bit_length() + 8, 10), 20)
        bits = bytearray(1 << self.hash_bits >> 3)
        for found in (lib.fastdump_window_hash(w[0], self.hash_bits) for w in windows):
            bits[found // 8] |= 1 << found % 8
        self.bucket_bits = max(self.hash_bits - 7, 5)
        hashes = [lib.fastdump_window_hash(w[0], self.bucket_bits) for w in windows]
        order = sorted(range(len(windows)), key=hashes.__getitem__)
        self.windows = ffi.new("struct fastdump_window[]", [windows[i] for i in order])
        counts = Counter(hashes)
        ends = itertools.accumulate(counts[h] for h in range(1 << self.bucket_bits))
        self.buckets = ffi.new("uint32_t[]", [0, *ends])
        self.filter = ffi.new("uint32_t[]", struct.unpack(f"<{len(bits) // 4}I", bits))


@dataclass(eq=False, repr=False)
class Searcher:
    """One thread's way to search: its buffers, and what it has found and read.

    Args:
        with_hits: Else matches are counted only.
        out_size: Bytes of hits that it gathers before they must be taken, at least.
    """

    tables: Tables
    with_hits: bool = True
    kernel: str = field(default_factory=default_kernel)
    chunk_size: int = CHUNK_SIZE
    out_size: int = 1 << 20

    def __post_init__(self) -> None:
        self.tally = Tally()
        self.gaps: list[Gap] = []
        self.written = 0  # bytes of hits
        tables = self.tables
        search = self._search = ffi.new("struct fastdump_search *")
        search.kernel = kernel_number(self.kernel)
        search.patterns, search.values, search.masks = tables.patterns, tables.values, tables.masks
        search.anchored = len(tables.anchored)
        search.windows, search.buckets = tables.windows, tables.buckets
        search.filter = tables.filter
        search.hash_bits, search.bucket_bits = tables.hash_bits, tables.bucket_bits
        search.fold = int.from_bytes([tables.fold] * _WINDOW, "little")
        search.stride, search.span = tables.stride, tables.span
        search.pointers, search.pointers_count = tables.targets, len(tables.targets)
        search.longest, search.align = tables.longest, tables.align
        # What a chunk may hold at the worst must fit: of many patterns a chunk holds fewer.
        search.size = max(self.chunk_size, 2 * LONGEST)
        size = ffi.sizeof("struct fastdump_hit")
        while self._room() * size > _MOST_ROOM and search.size > 2 * LONGEST:
            search.size //= 2
        search.room = self._room()
        self._buffer = aligned_buffer(HEAD + search.size + _SLACK)
        search.buffer = _cast("unsigned char *", self._buffer)
        self._counts = ffi.new("uint64_t[]", max(tables.count, 1))
        search.counts = self._counts
        if self.with_hits:
            search.capacity = 4 * search.room + self.out_size // size
            self._hits = aligned_buffer(search.capacity * size)
            search.hits = _cast("struct fastdump_hit *", self._hits)
        self._c_gaps = ffi.new("struct fastdump_gap[]", _GAP_CAPACITY)
        self._begin(0, _NO_LIMIT)

    def _room(self) -> int:
        return int(self.tables.most * (self._search.size + LONGEST))

    @property
    def counts(self) -> list[int]:
        """Matches of each pattern so far."""
        return list(self._counts[0 : self.tables.count])

    def _begin(self, start: int, end: int) -> None:
        lib.fastdump_search_begin(self._search)
        self._search.own_start, self._search.own_end = start, end

    def scan(
        self,
        memory: Memory,
        batches: Iterable[Sequence[Slice] | Gap],
        start: int = 0,
        end: int = _NO_LIMIT,
    ) -> Iterator[list[Hit]]:
        """Find what begins in ``[start, end)``; as :meth:`Scanner.scan`.

        Raises:
            MemoryGone: The target exited or called exec.
        """
        self._begin(start, end)
        for batch in batches:
            if isinstance(batch, Gap):
                self.gaps.append(batch)
                self.tally.gap += batch.end - batch.start
            elif not (yield from self._scan_batch(memory, batch)):
                return
        yield from self._scan_batch(memory, ())

    def _scan_batch(
        self, memory: Memory, slices: Sequence[Slice]
    ) -> Generator[list[Hit], None, bool]:
        """Whether the slices that follow are wanted; without any, it is the end."""
        if slices:
            slices = [*slices[:-1], slices[-1]._replace(flags=slices[-1].flags | MORE)]
        c_slices = _c_slices(slices)
        cursor = ffi.new("struct fastdump_cursor *")
        tally = ffi.new("struct fastdump_tally *")
        done = 0
        while not done:
            done = _check(
                lib.fastdump_search_slices(
                    memory._target,
                    c_slices,
                    len(slices),
                    self._search,
                    _GAP_CAPACITY,
                    cursor,
                    self._c_gaps,
                    tally,
                )
            )
            self.gaps += _take_gaps(cursor, self._c_gaps)
            yield from self._take()
        self.tally.add(_tally_of(tally))
        return done == 2

    def feed(self, data: Any, address: int, region: int, last: bool) -> Iterator[list[Hit]]:
        """Search bytes that the caller has, those at *address*.

        Args:
            last: What is fed next does not go on from here.
        """
        view = ffi.from_buffer(data)
        done, length = 0, len(view)
        while True:
            done += lib.fastdump_search_bytes(
                self._search, view + done, length - done, address + done, region, last
            )
            yield from self._take()
            if done == length:
                break

    def _take(self) -> Iterator[list[Hit]]:
        """What was found since the last call."""
        used, self._search.used = self._search.used, 0
        if used:
            self.written += used * _HIT.size
            hits, lengths = self._hits.view[: used * _HIT.size], self.tables.lengths
            yield [
                Hit(address, number, region, lengths[number])
                for address, number, region in _HIT.iter_unpack(hits)
            ]
