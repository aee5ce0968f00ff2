"""Selection: which regions are dumped, how much of each, and why. Pure."""

from __future__ import annotations

import fnmatch
import itertools
import re
import warnings
from collections.abc import Sequence
from enum import Enum
from functools import partial
from typing import NamedTuple

from fastdump._native import (
    EVERY,
    MEM_ONLY,
    MODIFIED,
    NO_FILE,
    ORIGIN,
    PAGE_SIZE,
    SWAPPED,
    Slice,
)
from fastdump.errors import RuleWarning, UsageError
from fastdump.labels import Kind, Label
from fastdump.region import Range, Region


class Preset(str, Enum):
    """What is selected before any rule.

    ``DATA``: private writable regions, without libraries and their ``.bss``.
    ``DEBUGGER``: that, and every page that exists nowhere else: modified pages of mapped
    files (RELRO, library data, patched text), anonymous memory that is not writable, the
    vdso, the first page of each module.
    ``ALL``: everything that can be read.
    """

    DATA = "data"
    DEBUGGER = "debugger"
    ALL = "all"


class Part(str, Enum):
    """How much of a region is dumped."""

    NONE = "none"
    MODIFIED = "modified pages"
    WHOLE = "all"


class Choice(NamedTuple):
    """What is dumped of a region, and why.

    ``header``: its first page too. ``ranges``: only these of it, where rules name addresses.
    """

    part: Part
    reason: str
    header: bool = False
    ranges: tuple[Range, ...] = ()

    @property
    def included(self) -> bool:
        return self.part is not Part.NONE


class Rule(NamedTuple):
    """One ``--include`` or ``--exclude``; the last rule that matches a region wins."""

    include: bool
    pattern: str

    def __str__(self) -> str:
        return f"--{'include' if self.include else 'exclude'} {self.pattern}"


_ADDRESSES = re.compile(r"(?:0x)?([0-9a-fA-F]+)-(?:0x)?([0-9a-fA-F]+)")
_PERMS = re.compile(r"[r?-][w?-][x?-][ps?]")
_KINDS = {kind.value: kind for kind in Kind}


def parse_addresses(pattern: str) -> Range | None:
    """``START-END`` in hexadecimal, as in maps; None if it is something else.

    Raises:
        UsageError: The end does not lie behind the start.
    """
    found = _ADDRESSES.fullmatch(pattern)
    if not found:
        return None
    start, end = int(found[1], 16), int(found[2], 16)
    if start >= end:
        raise UsageError(f"the address range {pattern} is empty")
    return Range(start // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE)


def matches(pattern: str, region: Region, label: Label) -> bool:
    """Whether a rule's pattern fits a region.

    In this order it is an address range (``7f00-7f80``; true where it overlaps), the
    permissions (``rw-p``, ``?`` for any), a label (``heap``, ``library``, ``file``), or a
    glob on the path or module (``/usr/lib/*``), or on its last part where the pattern has
    no slash (``libc.so.6``, ``[heap]``).
    """
    addresses = parse_addresses(pattern)
    if addresses:
        return region.start < addresses.end and addresses.start < region.end
    if _PERMS.fullmatch(pattern):
        return all(p in ("?", r) for p, r in zip(pattern, region.perms, strict=True))
    if pattern in _KINDS:
        return label.kind is _KINDS[pattern]
    paths = {region.path, label.module, region.path.removesuffix(" (deleted)")} - {""}
    if "/" not in pattern:
        paths = {path.rpartition("/")[2] for path in paths}
    # The name of a region in brackets is no character class.
    literal = pattern.startswith("[") and pattern.endswith("]")
    return any(p == pattern if literal else fnmatch.fnmatchcase(p, pattern) for p in paths)


def select(
    regions: Sequence[Region],
    labels: Sequence[Label],
    preset: Preset,
    rules: Sequence[Rule] = (),
    with_libraries: bool = False,
) -> list[Choice]:
    """What is dumped of each region, in the same order.

    Warns with a RuleWarning of each rule for a path or addresses that no region matches: what was
    to be left out may be misspelt. Many processes have no region of a label, or of permissions.
    """
    for rule in rules:
        named = rule.pattern in _KINDS or _PERMS.fullmatch(rule.pattern)
        if not named and not any(map(partial(matches, rule.pattern), regions, labels)):
            warnings.warn(f"{rule} matches nothing", RuleWarning, stacklevel=1)
    cuts = sorted({edge for rule in rules for edge in parse_addresses(rule.pattern) or ()})
    seen: set[str] = set()
    choices = []
    for region, label in zip(regions, labels, strict=True):
        choice = _never(region, label)
        if choice is None:
            choice = _by_preset(region, label, preset, with_libraries)
            if rules:
                choice = _by_rules(region, label, choice, rules, cuts)
            if preset is Preset.DEBUGGER and label.module and not choice.reason.startswith("--"):
                # Debuggers take the build-id from the first page of each module.
                if label.module not in seen and region.has_file and choice.part is not Part.WHOLE:
                    choice = choice._replace(header=True, part=Part.MODIFIED)
                seen.add(label.module)
        choices.append(choice)
    return choices


def _by_rules(
    region: Region, label: Label, default: Choice, rules: Sequence[Rule], cuts: Sequence[int]
) -> Choice:
    """Apply the rules to a region, cut where the address ranges among them begin and end."""
    inside = [cut for cut in cuts if region.start < cut < region.end]
    edges = [region.start, *inside, region.end]
    found = []
    for start, end in itertools.pairwise(edges):
        piece, choice = region._replace(start=start, end=end), default
        for rule in rules:
            if matches(rule.pattern, piece, label):
                choice = Choice(Part.WHOLE if rule.include else Part.NONE, str(rule))
        found.append((Range(start, end), choice))
    included = [(piece, choice) for piece, choice in found if choice.included]
    if not included:
        return found[0][1]
    if len({choice.part for _, choice in found}) == 1:
        return included[0][1]
    return included[-1][1]._replace(
        part=max((choice.part for _, choice in included), key=list(Part).index),
        ranges=tuple(piece for piece, _ in included),
    )


def _never(region: Region, label: Label) -> Choice | None:
    if label.kind is Kind.DEVICE:
        return Choice(Part.NONE, "device memory is never read: a read can have effects")
    if label.kind is Kind.KERNEL and region.path != "[vdso]":
        return Choice(Part.NONE, "a page of the kernel, the same in every process")
    return None


def _by_preset(region: Region, label: Label, preset: Preset, with_libraries: bool) -> Choice:
    if preset is Preset.ALL:
        return Choice(Part.WHOLE, "--all")
    library = label.kind is Kind.LIBRARY
    if region.private and region.writable and label.kind is not Kind.KERNEL:
        if not library:
            return Choice(Part.WHOLE, "private and writable")
        if with_libraries:
            return Choice(Part.WHOLE, "--with-libraries")
    if preset is Preset.DEBUGGER:
        if label.kind is Kind.KERNEL:
            return Choice(Part.WHOLE, "debuggers unwind through it")
        if region.private and not region.has_file:
            return Choice(Part.WHOLE, "private and in no file")
        if label.module and label.lost:
            return Choice(Part.WHOLE, "its file has no name any more")
        if region.private:
            return Choice(Part.MODIFIED, "its modified pages are in no file")
    if library:
        return Choice(Part.NONE, "belongs to a library")
    if not region.private:
        return Choice(Part.NONE, "shared")
    return Choice(Part.NONE, "not writable")


def slices_of(
    region: Region,
    choice: Choice,
    file: int | None,
    *,
    swapped: bool,
    userfault: bool,
    origin: bool = False,
) -> list[Slice]:
    """How the chosen part of a region is read; offsets are those in the region.

    Args:
        file: Descriptor of the mapped file; -1 where there is none, None where it cannot
            be opened.
        swapped: Read what is swapped too.
        userfault: A missing page would block process_vm_readv (userfaultfd(2)).
        origin: A fork does not copy it: it is read from what was forked.
    """
    if not choice.included:
        return []
    flags = SWAPPED if swapped else 0
    if not region.readable or userfault:
        flags |= MEM_ONLY
    if region.path == "[vdso]":
        flags |= EVERY
    if origin:
        flags |= ORIGIN
    if file is None:
        flags, file = flags | NO_FILE, -1
    region_slice = Slice(region.start, region.length, 0, flags, file, region.offset)
    slices = []
    for start, end in choice.ranges or (Range(region.start, region.end),):
        whole = region_slice.part(start - region.start, end - start)
        if choice.part is Part.WHOLE:
            slices.append(whole)
            continue
        header = PAGE_SIZE if choice.header and start == region.start else 0
        modified = whole.part(header, whole.length - header)._replace(flags=flags | MODIFIED)
        slices += [s for s in (whole.part(0, header), modified) if s.length]
    return slices
