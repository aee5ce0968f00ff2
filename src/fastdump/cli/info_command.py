"""``fastdump info``: what a process, a core or a dump is, and whether it is whole."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from typing import Any

import click

from fastdump.cli.completion import complete_source
from fastdump.cli.table import print_table
from fastdump.description import describe
from fastdump.dumped import Dumped
from fastdump.errors import CorruptDump, UsageError
from fastdump.sources import open_source
from fastdump.text import printable, size

_FORMATS = {
    "process": "a live process",
    "core": "an ELF core",
    "lz4": "an ELF core in LZ4 frames",
    "raw": "a raw dump",
    "raw-lz4": "a raw dump in LZ4 frames",
}
_MOST_ROWS = 20


@click.command(name="info")
@click.argument("source", shell_complete=complete_source)
@click.option("--regions", is_flag=True, help="Show every region, not only the sums of labels.")
@click.option(
    "--verify",
    "verifying",
    is_flag=True,
    help="Check every checksum of a dump, and say which ranges are lost. Exit code 6 if any is.",
)
@click.option("--threads", type=click.IntRange(1, 256), help="Threads for --verify.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def command(source: str, regions: bool, verifying: bool, threads: int | None, as_json: bool) -> int:
    """Tell what SOURCE is: a pid, an ELF core of any tool, a .core.lz4, the folder of a raw dump.

    Of which process, when and how it was taken; regions by label; threads and notes; gaps, with
    their reasons. Nothing but headers is read, unless --verify is given.
    """
    with open_source(source) as found:
        if verifying and not isinstance(found, Dumped):
            raise UsageError("a live process has nothing to verify", "name a dump")
        described = describe(found)
        code = 0
        if verifying:
            from fastdump.verify import verify

            assert isinstance(found, Dumped)
            lost, wrong = verify(found, threads)
            described["lost"] = [
                {"start": f"{g.start:#x}", "end": f"{g.end:#x}", "reason": g.reason} for g in lost
            ]
            described["problems"] += wrong
            code = CorruptDump.exit_code if lost or described["problems"] else 0
    if as_json:
        print(json.dumps(described))
        return code
    for line in _lines(described):
        print(line)
    print()
    if regions:
        _print_regions(described)
    _print_labels(described)
    return code


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{printable(found['source'])}: {_FORMATS[found['format']]}{_sizes(found)}"
    process = found.get("process") or {}
    if process:
        threads = len(found.get("threads") or ()) or process.get("threads")
        told = [f"{process.get('pid', '?')} {process.get('comm', '')}"]
        told += [process["exe"]] if process.get("exe") else []
        told += [f"user {process['uid']}"] if "uid" in process else []
        told += [f"{threads} threads" if threads != 1 else "1 thread"] if threads else []
        yield _line("process", ", ".join(map(str, told)))
        command = process.get("cmdline") or process.get("args")
        if command:
            yield _line("command", command if isinstance(command, str) else " ".join(command))
    if "host" in found:
        name, kernel, machine = (found["host"].get(key) for key in ("name", "kernel", "machine"))
        yield _line("host", f"{name}, Linux {kernel}, {machine}")
    if "tool" in found:
        told = [f"{found.get('time', 'converted')} by {found['tool']}"]
        if found.get("pause") == "none":
            told.append("it was not stopped")
        elif "pause" in found:
            told.append(f"paused: {found['pause']}")
        if not found.get("complete", True):
            told.append("INCOMPLETE: the target went away")
        yield _line("taken", "; ".join(told))
    elif found["format"] != "process":
        yield _line("taken", "not by fastdump: it has no manifest")
    signalled = [t for t in found.get("threads") or () if t["signal"]]
    if signalled:
        number = signalled[0]["signal"]
        with contextlib.suppress(ValueError):
            yield _line("signal", f"{signal.Signals(number).name}, thread {signalled[0]['tid']}")
    if found.get("notes"):
        types = list(dict.fromkeys(note["type"] for note in found["notes"]))
        yield _line("notes", f"{len(found['notes'])}: {', '.join(types)}")
    reasons: dict[str, int] = {}
    for gap in found["gaps"]:
        length = int(gap["end"], 16) - int(gap["start"], 16)
        reasons[gap["reason"]] = reasons.get(gap["reason"], 0) + length
    for reason, length in reasons.items():
        yield _line("gap", f"{size(length)}: {reason}")
    for problem in found.get("problems") or ():
        yield _line("problem", problem)
    if "lost" in found:
        lost = found["lost"]
        if not lost and not found.get("problems"):
            bare = found["format"] in ("core", "raw")
            yield _line("verified", "its length; it has no checksums" if bare else "all checksums")
        for gap in lost[:_MOST_ROWS]:
            yield _line("lost", f"{gap['start'][2:]}-{gap['end'][2:]}: {gap['reason']}")
        if len(lost) > _MOST_ROWS:
            yield _line("lost", f"and {len(lost) - _MOST_ROWS} ranges more (--json has all)")


def _line(key: str, text: str) -> str:
    return f"  {key:<9} {printable(text)}"


def _sizes(found: dict[str, Any]) -> str:
    if "size" not in found:
        return ""
    ratio = found["content"] / found["size"] if found["size"] else 0
    frames = f" ({found['frames']:,})" if "frames" in found else ""
    packed = ""
    if "lz4" in found["format"]:
        packed = f", {size(found['content'])} unpacked, ratio {ratio:.2f}"
    return f"{frames}, {size(found['size'])}{packed}"


def _print_regions(found: dict[str, Any]) -> None:
    head = ("address", "size", "data", "zeros", "perms", "label", "path")
    rows = [
        (
            f"{row['start'][2:]}-{row['end'][2:]}",
            size(row["size"]),
            size(row["data"]) if row["data"] else "-",
            size(row["zeros"]) if row["zeros"] else "-",
            row["perms"],
            row["label"],
            printable(row["path"] or (f".bss of {row['module']}" if row["module"] else "")),
        )
        for row in found["regions"]
    ]
    print_table(head, rows, right=range(1, 4))
    print()


def _print_labels(found: dict[str, Any]) -> None:
    head = ("label", "regions", "size", "data", "zeros")
    rows = [
        (label, str(row["regions"]), *(size(row[key]) for key in head[2:]))
        for label, row in found["labels"].items()
    ]
    print_table(head, rows, right=range(1, 5))
