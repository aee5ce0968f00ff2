"""Why: what fills the memory of a source, and which module put it there.

Memory is read once, a chunk at a time: to walk the allocator, to see what pages hold, and to pick
out the words that point into modules or the heap. These are kept, to be counted and followed from
chunk to chunk; where they are dense, and to count objects of CPython, memory is read again.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from fastdump._heap import Heap, Segment, SizeClass, joined
from fastdump._native import PAGE_SIZE, Gap
from fastdump._objects import TypeCounter
from fastdump._words import (
    FURTHER,
    PAGE_CLASSES,
    PARENT,
    TIERS,
    Cell,
    Hit,
    ModuleRange,
    Words,
)
from fastdump.addresses import short_name
from fastdump.allocators import GO, allocators, interpreters, is_narrow
from fastdump.cpython import Interpreter, find_cpython
from fastdump.gaps import Gaps, merged
from fastdump.ledger import FREE, LIVE, STACKS, UNKNOWN, Bucket, Ledger
from fastdump.live_source import LiveSource
from fastdump.malloc_glibc import GlibcHeap, GlibcWalk
from fastdump.modules import Modules
from fastdump.pointers import Pointers
from fastdump.region import Range
from fastdump.selection import Preset, Rule, select
from fastdump.source import Chunk, Source
from fastdump.text import printable, size, suggested, suggested_map
from fastdump.vtables import TypeName, Vtables

_MOST_TARGETS = 2048  # that are looked at for types
# Of live bytes: with less than that without an owner, no further chunk is looked for.
_ENOUGH = 0.01
_MOST_CHASED = 1 << 20  # chunks a round, each read by itself: 2 s
_MOST_ROUNDS = 3  # over memory, each for what the one before has found
_STANDS_OUT = 0.05  # of the pointers to the chunks of a module, or of these: what another one has
# A sample of text is one MiB in so many, as far as it has so many bytes at least. All of 4 GiB
# takes 3.8 s of CPU, twice as long as the rest of the page; of a service's five most frequent
# templates the sample was wrong by 0.6%.
_MOST_EVERY, _LEAST_SAMPLE = 32, 128 << 20


@dataclass
class ModuleShare:
    """The live chunks that a module owns; ``tiers``: bytes by how sure that is. Bytes.

    ``pointed_from``: the other module that most pointers to its chunks lie with, if one stands out.
    ``sizes``: its chunks by size; likewise of a type those that have a chunk to themselves.
    """

    path: str
    chunks: int
    bytes: int
    tiers: dict[str, int]
    example: int
    sizes: list[SizeClass]
    pointed_from: str


@dataclass
class TypeShare:
    """The objects of a type. ``bytes``: of C++ and Rust those that have a chunk to themselves.

    ``own``: as far as its name tells, it is the program's and not its language's.
    """

    language: str
    name: str
    module: str
    objects: int
    bytes: int
    example: int
    own: bool
    sizes: list[SizeClass] = field(default_factory=list)


@dataclass
class Template:
    """Strings that are alike but for numbers; see ``Why.sampled``."""

    text: str
    strings: int
    bytes: int


class Stack(NamedTuple):
    """What flame graphs and profiles are made of: frames from the root on, chunks and bytes."""

    frames: tuple[str, ...]
    chunks: int
    bytes: int


@dataclass
class Suspect:
    """A sentence, and the command that shows more."""

    text: str
    command: str


@dataclass
class Why(Gaps):
    """The whole page. Bytes.

    Attributes:
        rss: What the kernel says is resident; 0 of a dump.
        heap: Of glibc's malloc; None if it was not found.
        cells: The memory that was read for words, in its order: in runs of ``cell_size`` bytes.
        pages: How many of its pages of 4 KiB are of each class; both empty if not asked for.
        sampled: One MiB in so many was searched for ``templates``: estimates, if it is not 1.
        sizes: The live chunks of malloc that were not left out, by size; ``unowned``: those
            without an owner.
        problems: What is not known, or not sure: sentences.
    """

    name: str
    ledger: list[Bucket]
    rss: int
    heap: GlibcHeap | None
    modules: list[ModuleShare]
    types: list[TypeShare]
    templates: list[Template]
    sampled: int
    sizes: list[SizeClass]
    cells: Sequence[Cell]
    cell_size: int
    pages: dict[str, int]
    unowned: list[SizeClass]
    problems: list[str]
    gaps: list[Gap]
    suspects: list[Suspect] = field(default_factory=list)
    swap_asked: bool = False

    @property
    def total(self) -> int:
        """The sum of the ledger."""
        return sum(bucket.bytes for bucket in self.ledger)

    @property
    def live_bytes(self) -> int:
        return self.heap.live_bytes if self.heap else 0

    @property
    def tiers(self) -> dict[str, int]:
        """Bytes of live chunks by how their owner is known; what has none is left out."""
        return {tier: sum(m.tiers[tier] for m in self.modules) for tier in TIERS}

    @property
    def text_title(self) -> str:
        """What a table of the templates has over their text."""
        told = f": estimates, of one MiB in {self.sampled}" if self.sampled > 1 else ""
        return f"text, # for numbers{told}"

    def stacks(self) -> Iterator[Stack]:
        """Every byte once: live chunks by module, type and size class; else the bucket."""
        rest = {(module.path, each.size): each for module in self.modules for each in module.sizes}
        for found in self.types:
            for each in found.sizes:
                key = found.module, each.size
                _, chunks, length = rest[key]
                rest[key] = SizeClass(each.size, chunks - each.chunks, length - each.bytes)
                frames = short_name(found.module), f"{found.language} {found.name}", each.title
                yield Stack(frames, each.chunks, each.bytes)
        for (path, _), each in rest.items():
            if each.chunks:
                yield Stack((short_name(path), "other", each.title), each.chunks, each.bytes)
        for each in self.unowned:
            yield Stack(("no owner found", each.title), each.chunks, each.bytes)
        for bucket in self.ledger:
            if bucket.name != LIVE:
                yield Stack((bucket.name,), 0, bucket.bytes)

    def folded(self) -> Iterator[str]:
        """Lines for flame graphs: ``module;type;size class`` and bytes."""
        for frames, _, length in self.stacks():
            yield f"{';'.join(printable(f).replace(';', ':') for f in frames)} {length}"

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        heap = self.heap
        return {
            "version": 1,
            "source": self.name,
            "rss": self.rss,
            "total": self.total,
            "ledger": [asdict(bucket) for bucket in self.ledger],
            "malloc": heap
            and {
                "arenas": len(heap.arenas),
                "system": heap.system_bytes,
                "mapped": heap.mapped_bytes,
                "mapped_chunks": len(heap.mapped),
                "live": heap.live_bytes,
                "live_chunks": heap.live,
                "cached": heap.cached_bytes,
                "fastbins": heap.fast_bytes,
                "bins": heap.free_bytes,
                "top": heap.top_bytes,
                "own": heap.own_bytes,
                "checked": not heap.problems,
            },
            "tiers": self.tiers,
            "modules": [_with_sizes(module) for module in self.modules],
            "types": [_with_sizes(found) for found in self.types],
            "templates": [asdict(template) for template in self.templates],
            "sampled": self.sampled,
            "sizes": [found._asdict() for found in self.sizes],
            "unowned": [found._asdict() for found in self.unowned],
            "pages": self.pages,
            "suspects": [asdict(suspect) for suspect in self.suspects],
            "problems": self.problems,
            "gaps": [gap._asdict() for gap in self.gaps],
        }


def why(
    source: Source,
    *,
    rules: Sequence[Rule] = (),
    with_libraries: bool = False,
    count: int = 10,
    strings: bool = True,
    sample: bool = False,
    pages: bool = True,
    debuginfod: bool = False,
) -> Why:
    """What fills a source.

    Args:
        count: Lines of each table.
        strings: Look for repeated text too.
        sample: In some of a large source only: for one page, not for those to be compared.
        pages: See what pages of memory hold, for ``Why.pages`` and ``Why.cells``.
        debuginfod: As of :class:`fastdump.pointers.Pointers`.

    Raises:
        SourceGone: The target exited or called exec.
    """
    inquiry = _Inquiry(source, rules, with_libraries)
    return inquiry.answer(count, strings=strings, sample=sample, pages=pages, debuginfod=debuginfod)


class _Inquiry:
    def __init__(self, source: Source, rules: Sequence[Rule], with_libraries: bool) -> None:
        self._source, self._rules, self._with_libraries = source, rules, with_libraries
        self._regions, self._labels = source.regions, source.labels
        self._choices = select(self._regions, self._labels, Preset.DATA, rules, with_libraries)
        self._modules = Modules(source)
        self._cut = {number for number, choice in enumerate(self._choices) if choice.ranges}
        self._problems: list[str] = []
        self._gaps: list[Gap] = []

    def answer(
        self, count: int, *, strings: bool, sample: bool, pages: bool, debuginfod: bool
    ) -> Why:
        walk = GlibcWalk(self._source)
        self._glibc = walk.heap
        if walk.unread and not walk.heap:
            self._problems.append(
                "glibc's malloc was not found: the data of libc could not be read, which dumps of "
                "the formats core and lz4 have"
            )
        self._heap = Heap(self._segments())
        modules = self._modules.ranges or [ModuleRange(0, 0, 1)]
        words = Words(modules, self._heap, self._chunks, classify=pages)
        pointers = Pointers(self._source, debuginfod)
        python = find_cpython(self._source, pointers)
        metaclasses = self._sweep(walk, words, python)
        counter = self._types_of(python, metaclasses) if python and metaclasses else None
        objects = self._count_objects(counter) if counter else {}
        self._find_owners(words)
        sizes = words.sizes
        foreign = allocators(self._source, pointers)
        result = Why(
            name=self._source.name,
            ledger=self._ledger.buckets(
                self._source, objects, self._cut, stacks_in_heap=GO in foreign
            ),
            rss=_rss(self._source),
            heap=self._glibc,
            modules=self._module_shares(words, sizes),
            types=self._type_shares(words, pointers, python, counter, count),
            templates=[],
            sampled=1,
            cells=words.cells,
            cell_size=words.cell_size,
            pages=dict(zip(PAGE_CLASSES, words.pages, strict=True)) if pages else {},
            sizes=joined(sizes),
            unowned=sizes[0],
            problems=self._problems,
            gaps=merged(self._gaps),
        )
        if strings:  # after the ledger: text may take seconds, in which the process goes on
            result.templates, result.sampled = self._templates(count, sample)
        if self._glibc:
            self._problems += self._glibc.problems
        self._problems += [
            f"{name} is in use: which of its memory is free is not known" for name in foreign
        ]
        self._problems += [
            f"{name} is in use: its objects are not counted" for name in interpreters(self._source)
        ]
        if is_narrow(self._source):
            self._problems.append(
                "it is a 32-bit program: its heap is unknown memory, its pointers are not followed"
            )
        self._problems += pointers.problems
        swapped = sum(gap.end - gap.start for gap in self._gaps if gap.reason == "swapped")
        if swapped:
            self._problems.append(f"{size(swapped)} are swapped out, and were not read")
        if words.lost:
            self._problems.append(f"{words.lost} pointers into modules had no room in the table")
        result.suspects = _suspects(result, left_out=bool(self._rules))
        return result

    # --- passes --------------------------------------------------------------------------

    def _scanned(self) -> Iterator[tuple[int, Range]]:
        """The memory whose words count; those of a stack are what earlier calls left there."""
        for number, (label, choice) in enumerate(zip(self._labels, self._choices, strict=True)):
            region = self._regions[number]
            if not choice.included:
                continue
            if label.kind not in STACKS:
                for found in choice.ranges or (Range(region.start, region.end),):
                    yield number, found
                continue
            for segment in self._segments_in(region.start, region.end):
                # It may go on in the next region, which is no stack.
                first = max(segment.start, region.start)
                yield number, Range(first, min(segment.end, region.end))

    def _in_arenas(self) -> Iterator[tuple[int, Range]]:
        """What of it lies in chunks that are not mapped each by itself."""
        for number, (start, end) in self._scanned():
            for segment in self._segments_in(start, end):
                if not segment.single:
                    first = max(start, segment.start) // PAGE_SIZE * PAGE_SIZE
                    yield number, Range(first, min(end, segment.next))

    def _with_objects(self) -> Iterator[tuple[int, Range]]:
        """What of it may have objects of Python.

        A chunk that is mapped by itself is one object at the most, and what that one holds.
        """
        for number, (start, end) in self._scanned():
            for segment in self._segments_in(start, end):
                if segment.single:
                    if start < segment.start + PAGE_SIZE:
                        yield number, Range(start, min(segment.start + PAGE_SIZE, end))
                    start = min(segment.next, end)
            if start < end:
                yield number, Range(start, end)

    def _with_types(self) -> Iterator[tuple[int, Range]]:
        """What of it may have types of Python: its own allocator has none so large."""
        return self._in_arenas() if self._glibc else self._scanned()

    def _segments_in(self, start: int, end: int) -> Iterator[Segment]:
        return self._glibc.segments_in(start, end) if self._glibc else iter(())

    def _segments(self) -> list[Segment]:
        """Those that are not left out: of others the ledger has no chunks either."""
        found = (self._segments_in(start, end) for _, (start, end) in self._scanned())
        return list(dict.fromkeys(itertools.chain.from_iterable(found)))

    def _chunks(self, where: Range) -> Iterator[Chunk]:
        return (part for part in self._source.walk([where]) if isinstance(part, Chunk))

    def _sweep(
        self, walk: GlibcWalk, words: Words, python: Interpreter | None
    ) -> TypeCounter | None:
        """Read all memory, for those who want it; returns what has the types of Python."""
        metaclasses = None
        if python and python.unsupported:
            self._problems.append(f"the objects of CPython are not counted: {python.unsupported}")
        elif python:
            metaclasses = python.metaclasses(Heap([]))  # which chunks are free is not known yet
            python.add_types([python.type_type])
        words.feed_types(metaclasses)
        for number, where in self._scanned():
            gaps = list(self._source.pour(where, words))
            self._gaps += gaps
            if gaps:
                self._cut.add(number)
        words.feed_types(None)
        if self._glibc:
            walk.finish()
        self._ledger = Ledger(self._glibc)
        for number, (start, end) in words.entered(self._regions):
            self._ledger.enter(number, start, end)
        if python and metaclasses:
            self._feed_data(metaclasses)
        return metaclasses

    def _feed_data(self, metaclasses: TypeCounter) -> None:
        """Where static types lie: the interpreter's own, and those of extension modules."""
        for where, _ in self._module_data():
            for part in self._chunks(where):
                metaclasses.feed(part.address, part.data)

    def _types_of(self, python: Interpreter, metaclasses: TypeCounter) -> TypeCounter:
        """The counter of all types: those whose type is a metaclass, until there is no new one."""
        rounds = 0
        while python.add_types(metaclasses.places):
            if rounds == _MOST_ROUNDS:
                self._problems.append(
                    "classes of Python whose metaclasses are instances of one another, more than "
                    f"{_MOST_ROUNDS} deep, are not counted"
                )
                break
            rounds += 1
            metaclasses = python.metaclasses(self._heap)
            for _, where in self._with_types():
                for part in self._chunks(where):
                    metaclasses.feed(part.address, part.data)
            self._feed_data(metaclasses)
        return python.counter(self._heap)

    def _count_objects(self, counter: TypeCounter) -> dict[int, int]:
        """The objects of Python in each region."""
        objects: dict[int, int] = {}
        before = 0
        for number, where in self._with_objects():
            for part in self._chunks(where):
                counter.feed(part.address, part.data)
            objects[number] = objects.get(number, 0) + counter.total - before
            before = counter.total
        return objects

    def _find_owners(self, words: Words) -> None:
        """By what chunks point to, then from chunk to chunk."""
        words.count()
        words.follow(PARENT)
        for where, module in self._module_data():
            words.follow_data(where, module)
        for _ in range(_MOST_ROUNDS):
            if self._is_enough(words):
                break
            news = words.follow(FURTHER)
            if self._is_enough(words):
                break
            news += words.chase(*self._source.direct(), _MOST_CHASED)
            if not news:
                break

    def _module_data(self) -> Iterator[tuple[Range, int]]:
        """Writable data of modules, each with the number of its module."""
        for region, label in zip(self._regions, self._labels, strict=True):
            module = self._modules.numbers.get(label.module, 0)
            if module and region.writable and region.private:
                yield Range(region.start, region.end), module

    def _is_enough(self, words: Words) -> bool:
        if not self._glibc:
            return True
        live = self._glibc.live_bytes
        return live - sum(sum(found.bytes) for found in words.owned) <= live * _ENOUGH

    # --- tables --------------------------------------------------------------------------

    def _module_shares(self, words: Words, sizes: Sequence[list[SizeClass]]) -> list[ModuleShare]:
        if not self._glibc:
            return []
        found = []
        holders, sampled = words.holders(self._module_data()), words.sampled
        both = zip(self._modules.paths, words.owned, strict=False)
        for number, (path, owned) in enumerate(both):
            if sum(owned.chunks):
                most = max(range(len(TIERS)), key=lambda tier: owned.bytes[tier])
                holder = _holder(holders[number], number, sum(owned.chunks) // sampled)
                found.append(
                    ModuleShare(
                        path=path,
                        chunks=sum(owned.chunks),
                        bytes=sum(owned.bytes),
                        tiers=dict(zip(TIERS, owned.bytes, strict=True)),
                        example=owned.example[most],
                        sizes=sizes[number],
                        pointed_from=self._modules.paths[holder],
                    )
                )
        return sorted(found, key=lambda m: -m.bytes)

    def _type_shares(
        self,
        words: Words,
        pointers: Pointers,
        python: Interpreter | None,
        counter: TypeCounter | None,
        count: int,
    ) -> list[TypeShare]:
        vtables = Vtables(self._source, self._modules.ranges, pointers)
        hits: dict[int, list[Hit]] = {}
        by_bytes: Counter[int] = Counter()
        by_words: Counter[int] = Counter()
        for hit in words.hits:
            hits.setdefault(hit.target, []).append(hit)
            by_bytes[hit.target] += hit.bytes
            by_words[hit.target] += hit.words
        most = [*by_bytes.most_common(_MOST_TARGETS), *by_words.most_common(_MOST_TARGETS)]
        shares: dict[tuple[str, str, str], TypeShare] = {}
        for target in dict.fromkeys(target for target, _ in most):
            if name := vtables.type_of(target):
                self._enter(shares, name, hits[target])
        if python and counter:
            for found in python.counted(counter.counts)[: 2 * count]:
                path = self._modules.path_at(found.type.address) or python.module
                key = "Python", found.type.name, path
                own = found.type.own
                share = shares.setdefault(key, TypeShare(*key, 0, 0, found.example, own))
                share.objects += found.objects
                share.bytes += found.bytes
        return sorted(shares.values(), key=lambda t: (-t.bytes, -t.objects, t.name))[: 2 * count]

    def _enter(
        self, shares: dict[tuple[str, str, str], TypeShare], name: TypeName, hits: Sequence[Hit]
    ) -> None:
        key = name.language, name.name, self._modules.path_at(hits[0].target)
        share = shares.setdefault(key, TypeShare(*key, 0, 0, hits[0].example, name.own))
        share.objects += sum(hit.words for hit in hits)
        share.bytes += sum(hit.bytes for hit in hits)
        sizes = [SizeClass(1 << h.size_class, h.words, h.bytes) for h in hits if h.size_class]
        share.sizes = joined([share.sizes, sizes])

    def _templates(self, count: int, sample: bool) -> tuple[list[Template], int]:
        """Those with the most bytes; one MiB in how many was searched for them."""
        from fastdump._strings import Query
        from fastdump.sweep import SAMPLE
        from fastdump.top import top  # 3 ms that a page without strings does without

        place = self._source.place(rules=self._rules, with_libraries=self._with_libraries)
        try:
            whole = sum(s.length for s in place.slices)
            every = max(min(_MOST_EVERY, whole // _LEAST_SAMPLE), 1) if sample else 1
            found = top(place, Query(min_length=8), count, every=every)
            searched = found.report.tally.accounted - place.tally.accounted
            times = whole / searched if every > 1 else 1
        finally:
            place.close()
        # What is longer than a piece would become more than there is: it counts as it was found.
        scales = [times if row.length <= row.count * SAMPLE else 1 for row in found.rows]
        return [
            Template(
                text=row.text.decode("utf-8", "backslashreplace"),
                strings=round(row.count * scale),
                bytes=round(row.length * scale),
            )
            for row, scale in zip(found.rows, scales, strict=True)
        ], every


def _holder(counts: Sequence[int], number: int, chunks: int) -> int:
    """The other module that most of the pointers to the *chunks* of one lie with, or 0.

    Few of them say nothing: where programs keep addresses within chunks, they are chance.
    """
    most = max(range(len(counts)), key=lambda n: -1 if n == number else counts[n])
    return most if counts[most] > max(sum(counts), chunks) * _STANDS_OUT else 0


def _with_sizes(found: ModuleShare | TypeShare) -> dict[str, Any]:
    return {**vars(found), "sizes": [each._asdict() for each in found.sizes]}


def _rss(source: Source) -> int:
    return source.process.growth().rss if isinstance(source, LiveSource) else 0


def _held(module: ModuleShare) -> str:
    most = max(module.sizes, key=lambda each: each.bytes)
    parts = [f"{short_name(module.path)} holds {size(module.bytes)} in {module.chunks:,} chunks"]
    if most.chunks < module.chunks:
        parts.append(f", {size(most.bytes)} of it in {most.chunks:,}")
    parts.append(f" of about {size(most.bytes // most.chunks)}")
    if module.pointed_from:
        parts.append(f", pointed to from {short_name(module.pointed_from)}")
    return "".join(parts)


def _suspects(found: Why, *, left_out: bool) -> list[Suspect]:
    """What stands out, the largest first; *left_out*: some memory was, as told."""
    name, total = found.name, max(found.total, 1)
    suspects: list[tuple[int, Suspect]] = []

    def suspect(length: int, text: str, command: str) -> None:
        suspects.append((length, Suspect(text, command)))

    for module in found.modules[:3]:
        if module.bytes > total / 20:
            suspect(
                module.bytes,
                _held(module),
                suggested("hexdump", name, f"{module.example:x} --follow-pointers"),
            )
    for each in found.types[:3]:
        if each.bytes > total / 20:
            suspect(
                each.bytes,
                f"{each.objects:,} objects of the {each.language} type {each.name} take "
                f"{size(each.bytes)}",
                suggested("hexdump", name, f"{each.example:x} --follow-pointers"),
            )
    about = "about " if found.sampled > 1 else ""
    for template in found.templates[:2]:
        if template.bytes > total / 20:
            suspect(
                template.bytes,
                f"{about}{template.strings:,} strings like {template.text[:40]!r} take "
                f"{size(template.bytes)}",
                suggested("strings", name, "--top 20"),
            )
    buckets = {bucket.name: bucket.bytes for bucket in found.ledger}
    unowned = found.live_bytes - sum(module.bytes for module in found.modules)
    if unowned > total / 5:
        suspect(
            unowned,
            f"{size(unowned)} are live chunks that no module is found for",
            suggested("leaks", name),
        )
    if buckets[FREE] > total / 5:
        suspect(
            buckets[FREE],
            f"{size(buckets[FREE])} are free, but malloc holds them: fragmentation, or a peak "
            "that is over",
            suggested_map(name),
        )
    if buckets[UNKNOWN] > total / 5:
        is_sure = not (left_out or found.problems or found.gaps)
        whose = "that is not glibc's" if is_sure else "not known to be glibc's"
        suspect(
            buckets[UNKNOWN],
            f"{size(buckets[UNKNOWN])} are anonymous memory {whose}",
            suggested_map(name),
        )
    return [each for _, each in sorted(suspects, key=lambda found: -found[0])]
