"""The manifest: what a dump holds, what it lacks, and where it comes from. JSON, versioned.

Addresses are hexadecimal strings, since a JSON number is only exact below 2^53. It tells nothing
about how fast or into which container it was written, so that dumps of the same memory are
the same bytes; with SOURCE_DATE_EPOCH set, its time is that (reproducible-builds.org).
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fastdump import __version__
from fastdump._native import PAGE_SIZE, Gap, Tally
from fastdump.errors import CorruptDump
from fastdump.labels import Kind, Label
from fastdump.region import Range, Region
from fastdump.selection import Choice, Part
from fastdump.snapshot import NONE, Snapshot
from fastdump.text import encoded

if TYPE_CHECKING:
    from fastdump.survey import Survey

SCHEMA = 1
# Commas, colons and brackets: each may cost 100 bytes once it is parsed. Of a raw dump each mapping
# takes 38, of the 262,144 that search engines ask for; and each gap 9.
_MOST_MARKS = 16 << 20
# Of the numbers of a process, as struct elf_prpsinfo has them.
_BITS = dict.fromkeys(("pid", "ppid", "pgrp", "sid", "threads"), 31)
_BITS |= {"uid": 32, "gid": 32, "flag": 64}


def make_manifest(
    survey: Survey,
    snapshot: Snapshot,
    identity: dict[str, object],
    tally: Tally,
    gaps: Sequence[Gap],
    *,
    complete: bool,
) -> dict[str, object]:
    """The manifest of a dump of *survey*, which was made of *snapshot*.

    Args:
        complete: False if the target went away before all was read.
    """
    uname = platform.uname()
    return {
        "schema": SCHEMA,
        "tool": f"fastdump {__version__}",
        "time": _now(),
        "host": {"name": uname.node, "kernel": uname.release, "machine": uname.machine},
        "process": identity,
        "page_size": PAGE_SIZE,
        "pause": snapshot.pause.kind,
        **({"snapshot": snapshot.as_dict()} if snapshot.pause.asked != NONE else {}),
        "complete": complete,
        "selection": {
            "preset": survey.preset.value,
            "with_libraries": survey.with_libraries,
            "rules": [str(rule) for rule in survey.rules],
            "swapped": survey.read_swapped,
        },
        "totals": totals(survey, tally),
        "regions": [
            {
                "start": f"{region.start:#x}",
                "end": f"{region.end:#x}",
                "perms": region.perms,
                "offset": region.offset,
                "dev": region.dev,
                "inode": region.inode,
                "path": region.path,
                "label": label.kind.value,
                "module": label.module,
                "note": label.note,
                "dumped": choice.part.value,
                "reason": choice.reason,
                **({"ranges": _ranges(choice)} if choice.ranges else {}),
            }
            for region, label, choice in zip(
                survey.regions, survey.labels, survey.choices, strict=True
            )
        ],
        "gaps": [
            {
                "start": f"{gap.start:#x}",
                "end": f"{gap.end:#x}",
                "reason": gap.reason,
                "errno": gap.errno,
            }
            for gap in gaps
        ],
        "unfrozen": [
            {"start": f"{found.start:#x}", "end": f"{found.end:#x}", "reason": found.reason}
            for found in snapshot.unfrozen(
                region
                for region, choice in zip(survey.regions, survey.choices, strict=True)
                if choice.included
            )
        ],
    }


def _ranges(choice: Choice) -> list[list[str]]:
    return [[f"{start:#x}", f"{end:#x}"] for start, end in choice.ranges]


class Recorded(NamedTuple):
    """A region as a manifest has it.

    ``whole``: the ranges of it that the dump covers: what it has no bytes of is zero there, or a
    gap. ``files``: of a raw dump, with the ranges they hold.
    """

    region: Region
    label: Label
    whole: list[Range]
    files: list[tuple[str, Range]]


class Manifest(NamedTuple):
    """What a manifest tells a reader; ``raw`` is all of it."""

    regions: list[Recorded]
    gaps: list[Gap]
    raw: dict[str, Any]


def read_manifest(text: bytes) -> Manifest:
    """Parse and check a manifest: ranges in order, within their regions, below 2^64.

    Raises:
        CorruptDump: It is none, or of a later schema.
    """
    if sum(map(text.count, (b",", b":", b"[", b"{"))) > _MOST_MARKS:
        raise CorruptDump("the manifest is too long to be one")
    try:
        raw = json.loads(text)
        if raw["schema"] != SCHEMA:
            raise CorruptDump(
                f"the manifest has schema {raw['schema']!r}, and this fastdump knows {SCHEMA}",
                "use the fastdump that wrote it, or a later one",
            )
        gaps = [
            Gap(
                *_range(gap["start"], gap["end"]), _text(gap["reason"]), _number(gap["errno"], 4096)
            )
            for gap in raw["gaps"]
        ]
        regions = [_recorded(region) for region in raw["regions"]]
        _check_order([(r.region.start, r.region.end) for r in regions])
        _check_order([gap[:2] for gap in gaps])
        for key in ("host", "process", "selection", "totals"):
            if not isinstance(raw.get(key, {}), dict):
                raise ValueError(key)
        _check_process(raw.get("process", {}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptDump(f"the manifest is broken: {type(error).__name__} {error}") from None
    return Manifest(regions, gaps, raw)


def _recorded(raw: dict[str, Any]) -> Recorded:
    start, end = _range(raw["start"], raw["end"])
    perms = _text(raw["perms"])
    if len(perms) != 4:
        raise ValueError("perms")
    offset, inode = _number(raw["offset"], 1 << 64), _number(raw["inode"], 1 << 64)
    region = Region(start, end, perms, offset, _text(raw["dev"]), inode, _text(raw["path"]))
    label = Label(Kind(raw["label"]), _text(raw["module"]), _text(raw["note"]))
    whole = []
    if raw["dumped"] == Part.WHOLE.value:
        whole = [_range(*pair) for pair in raw.get("ranges", [[raw["start"], raw["end"]]])]
    files = [
        (_text(file["name"]), _range(file["start"], file["end"])) for file in raw.get("files", ())
    ]
    _check_order(whole)
    for inside in [*whole, *(found for _, found in files)]:
        if inside.start < start or inside.end > end:
            raise ValueError("a range outside of its region")
    return Recorded(region, label, whole, files)


def _range(start: str, end: str) -> Range:
    found = Range(int(start, 16), int(end, 16))
    if not 0 <= found.start < found.end < 1 << 64:
        raise ValueError(f"no range: {start}-{end}")
    return found


def _text(value: Any) -> str:
    """Text that can be the bytes of a path again."""
    if not isinstance(value, str) or b"\0" in encoded(value):
        raise ValueError(f"no text: {value!r:.100}")
    return value


def _number(value: Any, most: int) -> int:
    """From 0 to below *most*."""
    if type(value) is not int or not 0 <= value < most:  # True is an int, too
        raise ValueError(f"no number, or out of range: {value!r:.100}")
    return value


def _check_process(process: dict[str, Any]) -> None:
    """What there is of it must be what it goes by in a core."""
    for key in _BITS.keys() & process.keys():
        _number(process[key], 1 << _BITS[key])
    _number(process.get("nice", 0) + 20, 40)
    state = _text(process.get("state", "R"))
    if len(state) != 1 or not state.isascii():
        raise ValueError("state")
    for text in [*(process.get(key, "") for key in ("comm", "exe")), *process.get("cmdline", ())]:
        _text(text)


def _check_order(ranges: Sequence[tuple[int, int]]) -> None:
    for one, other in itertools.pairwise(ranges):
        if other[0] < one[1]:
            raise ValueError("ranges that overlap")


def totals(survey: Survey, tally: Tally) -> dict[str, int]:
    """What became of the selected bytes; all but the first add up to it."""
    return {
        "selected": survey.selected,
        "read": tally.read,
        "file": tally.file,
        "zero": tally.zero,
        "absent": tally.absent,
        "clean": tally.clean,
        "gap": tally.gap,
    }


def _now() -> str:
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
