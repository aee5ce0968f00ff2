"""What is known of a source, as plain data: for ``fastdump info``."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from fastdump.core_source import ElfCore
from fastdump.dumped import Dumped
from fastdump.elf import NT_AUXV, NT_FILE, NT_PRPSINFO, NT_PRSTATUS
from fastdump.frames import Frames
from fastdump.live_source import LiveSource
from fastdump.source import Source

# include/uapi/linux/elf.h
_NOTE_TYPES = {
    NT_PRSTATUS: "NT_PRSTATUS",
    2: "NT_PRFPREG",
    NT_PRPSINFO: "NT_PRPSINFO",
    NT_AUXV: "NT_AUXV",
    0x53494749: "NT_SIGINFO",
    NT_FILE: "NT_FILE",
    0x202: "NT_X86_XSTATE",
    0x204: "NT_X86_SHSTK",
    0x205: "NT_X86_XSAVE_LAYOUT",
    0x401: "NT_ARM_TLS",
    0x405: "NT_ARM_SVE",
    0x406: "NT_ARM_PAC_MASK",
    0xFF000000: "NT_GDB_TDESC",
}

_OF_MANIFEST = (
    *("tool", "time", "host", "pause", "snapshot", "unfrozen"),
    *("complete", "selection", "totals"),
)


def describe(source: Source) -> dict[str, Any]:
    """Identity, format, threads, notes, regions with labels, gaps, sums. Sizes in bytes.

    Raises:
        SourceGone: The target exited or called exec.
    """
    found: dict[str, Any] = {"source": source.name, "format": source.format}
    if isinstance(source, LiveSource):
        found["process"] = source.process.identity
        residency = source.residency
        data = [r.present + r.swapped for r in residency]
        zeros = [r.zero for r in residency]
        found["gaps"] = []
    else:
        assert isinstance(source, Dumped)
        found.update(_of_dump(source))
        data, zeros = source.known()
        found["gaps"] = [
            {"start": f"{g.start:#x}", "end": f"{g.end:#x}", "reason": g.reason, "errno": g.errno}
            for g in source.gaps
        ]
    regions = []
    labels: dict[str, dict[str, int]] = defaultdict(
        lambda: dict.fromkeys(("regions", "size", "data", "zeros"), 0)
    )
    for region, label, held, zero in zip(source.regions, source.labels, data, zeros, strict=True):
        regions.append(
            {
                "start": f"{region.start:#x}",
                "end": f"{region.end:#x}",
                "size": region.length,
                "data": held,
                "zeros": zero,
                "perms": region.perms,
                "offset": region.offset,
                "label": label.kind.value,
                "module": label.module,
                "path": region.path,
                "note": label.note,
            }
        )
        for total in (labels[label.kind.value], labels["total"]):
            total["regions"] += 1
            total["size"] += region.length
            total["data"] += held
            total["zeros"] += zero
    labels["total"] = labels.pop("total", dict.fromkeys(("regions", "size", "data", "zeros"), 0))
    found["regions"], found["labels"] = regions, dict(labels)
    return found


def _of_dump(source: Dumped) -> dict[str, Any]:
    manifest = source.manifest.raw if source.manifest else {}
    keys = (
        "tool",
        "time",
        "host",
        "pause",
        "snapshot",
        "unfrozen",
        "complete",
        "selection",
        "totals",
    )
    found: dict[str, Any] = {key: manifest[key] for key in keys if key in manifest}
    found["manifest"] = bool(manifest)
    found["process"] = source.process
    found["size"] = sum(storage.stored for storage in source.storages)
    found["content"] = sum(storage.size for storage in source.storages)
    found["problems"] = list(source.notes)
    frames = [storage for storage in source.storages if isinstance(storage, Frames)]
    if frames:
        found["frames"] = sum(f.count for f in frames)
    if isinstance(source, ElfCore):
        elf = source.elf
        found["threads"] = [
            {"tid": t.tid, "signal": t.signal, "stack_pointer": f"{t.stack_pointer:#x}"}
            for t in elf.threads
        ]
        found["notes"] = [
            {
                "owner": note.name,
                "type": _NOTE_TYPES.get(note.type, f"{note.type:#x}"),
                "size": len(note.desc),
            }
            for note in elf.notes
        ]
        found["segments"] = len(elf.segments)
    else:
        found["files"] = len(source.storages)
    return found
