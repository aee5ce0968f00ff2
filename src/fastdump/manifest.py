"""The manifest: what a dump holds, what it lacks, and where it comes from. JSON, versioned.

Addresses are hexadecimal strings, since a JSON number is only exact below 2^53. It tells nothing
about how fast or into which container it was written, so that dumps of the same memory are
the same bytes; with SOURCE_DATE_EPOCH set, its time is that (reproducible-builds.org).
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence

from fastdump import __version__
from fastdump._native import PAGE_SIZE, Gap, Tally
from fastdump.survey import Survey

SCHEMA = 1


def make_manifest(
    survey: Survey,
    identity: dict[str, object],
    tally: Tally,
    gaps: Sequence[Gap],
    *,
    complete: bool,
) -> dict[str, object]:
    """The manifest of a dump of *survey*.

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
        "pause": "none",
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
    }


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
