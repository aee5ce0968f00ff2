"""Tables and plots of the last record, written into README.md, ../README.md and ../docs.

    python benchmarks/report.py [--check]

``run.py --record`` calls it. What lies between ``<!-- record: NAME -->`` and ``<!-- end -->`` is
made anew by the function of that name; ``--check`` only says whether that would change anything.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "records"
PLOTS = HERE / "plots"
PAGES = (HERE / "README.md", HERE.parent / "README.md", *(HERE.parent / "docs").glob("*.md"))
BLOCK = re.compile(r"(<!-- record: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

BUSY = 0.1  # of the CPUs, before the rows of a record are run

Record = dict[str, Any]

# What README.md shows: how a check begins, and what it is called there.
HEADLINES = (
    ("null", "fastdump against bare read, work", "reading, against a C loop"),
    ("raw-tmpfs", "fastdump against dd loop, wall", "`dump -f raw` to memory, against `dd`"),
    ("raw-tmpfs", "fastdump against gcore, wall", "the same, against `gcore`"),
    ("raw-disk", "fastdump against gcore", "`dump -f raw` to a disk, against `gcore`"),
    ("lz4-disk", "fastdump against gcore", "`dump` to a disk, against `gcore; lz4 -1`"),
    ("strings-live-heap", "fastdump strings against", "`strings`, against `gcore; strings`"),
    (
        "strings-file-heap",
        "fastdump strings -t x against rg",
        "`strings` of a file, against `rg -a -o`",
    ),
    ("hexdump-random", "fastdump hexdump against", "`hexdump`, against `hexdump -C`"),
    ("pause-4k", "gcore / fastdump", "pause of the target: how many times as short as `gcore`'s"),
)


def last_record() -> Record:
    """The newest of records/; they are called by their dates."""
    record: Record = json.loads(max(RECORDS.glob("*.json")).read_text())
    return record


def merged(old: Record, new: Record) -> Record:
    """The new record, and of the old one the rows that were not run again, if it is of the same
    machine.
    """
    load = max(old["machine"]["load"], new["machine"]["load"])
    if old["machine"] | {"load": load} != new["machine"] | {"load": load}:
        return new
    new["machine"]["load"] = load
    for key in ("timings", "checks"):
        new[key] = [one for one in old[key] if one["row"] not in new["runs"]] + new[key]
    kept = [line for line in old["failures"] if line.partition(":")[0] not in new["runs"]]
    absent = {row: why for row, why in old["absent"].items() if row not in new["runs"]}
    return new | {
        "failures": kept + new["failures"],
        "absent": absent | new["absent"],
        "runs": old["runs"] | new["runs"],
    }


# --- tables -------------------------------------------------------------------------------------


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up."""
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    padded = ([c.ljust(w) for c, w in zip(x, widths, strict=True)] for x in (head, rule, *lines))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def median(timing: Record, measure: str) -> float:
    return statistics.median(sample[measure] for sample in timing["samples"])


def timing_table(timings: Sequence[Record]) -> str:
    lines = [
        (
            timing["row"],
            timing["engine"],
            f"{median(timing, 'work'):.3f} ({min(s['work'] for s in timing['samples']):.3f})",
            f"{timing['gb_per_second']:.2f}",
            f"{median(timing, 'wall'):.3f} ({min(s['wall'] for s in timing['samples']):.3f})",
            f"{median(timing, 'size') / 1e6:.0f}",
        )
        for timing in timings
    ]
    head = ("row", "engine", "work s, median (min)", "GB/s", "wall s, median (min)", "output MB")
    return table(head, lines)


def limit_of(check: Record) -> str:
    if check["at_least"] is not None:
        return f"≥ {check['at_least']:.3g} {check['unit']}"
    return "-" if check["below"] is None else f"< {check['below']:.3g} {check['unit']}"


def check_table(checks: Sequence[Record]) -> str:
    lines = [
        (c["row"], c["what"], f"{c['value']:.2f} {c['unit']}", limit_of(c), c["verdict"])
        for c in checks
    ]
    return table(("row", "what", "measured", "limit", "verdict"), lines)


# --- what pages ask for -------------------------------------------------------------------------


def conditions(record: Record, rows: Container[str]) -> str:
    """Sizes and rounds of rows; and whether something else ran, which spoils all of it."""
    by_way: dict[str, list[str]] = {}
    for row, run in record["runs"].items():
        if row not in rows:
            continue
        way = f"{run['size'] / (1 << 30):g} GiB, rounds: {run['repeat']}"
        by_way.setdefault(way, []).append(row)
    usual, *others = sorted(by_way, key=lambda way: -len(by_way[way]))
    ways = "; ".join([usual, *(f"{', '.join(by_way[way])}: {way}" for way in others)])
    load, cores = record["machine"]["load"], record["machine"]["cores"]
    others_work = f" **The machine did other work: it kept {load} CPUs busy.**"
    return f"Targets of {ways}.{others_work if load > BUSY * cores else ''}"


def machine(record: Record) -> str:
    """What it was taken on, and how."""
    told, image = record["machine"], record["image"]
    kind = "a virtual machine" if told["virtual"] else "a machine"
    versions = ", ".join(f"{name} {text}" for name, text in told["versions"].items() if text)
    minutes = sum(run["seconds"] for run in record["runs"].values()) / 60
    return (
        f"{record['date']}: {kind} with {told['cores']} CPUs ({told['cpu']}), {told['memory_gib']} "
        f"GiB, Linux {told['kernel']}, huge pages: {told['huge_pages']}, disk: {told['disk']}.\n"
        f"{conditions(record, record['runs'])} {minutes:.0f} min in all; "
        f"LZ4 makes 1/{image['lz4_ratio']} of the image.\n{versions}."
    )


def checks(record: Record) -> str:
    """All ratios, and the limits of those that have one."""
    return check_table(record["checks"])


def timings(record: Record) -> str:
    """All engines."""
    return timing_table(record["timings"])


def missed(record: Record) -> str:
    """What did not hold, and what was left out, or was not run."""
    lines = [
        f"- Missed: {c['row']}: {c['what']}: {c['value']:.2f} {c['unit']}, limit {limit_of(c)}."
        for c in record["checks"]
        if c["verdict"] == "FAIL"
    ]
    lines += [f"- Failed: {failure}." for failure in record["failures"]]
    lines += [f"- Left out: {row}: {why}." for row, why in record["absent"].items()]
    lines += [f"- Not run: {row}." for row in record["rows"] if row not in record["runs"]]
    return "\n".join(lines) or "Every limit was kept, and no row was left out."


def peers_win(record: Record) -> str:
    """Ratios against a peer that are below 1."""
    rivals = ("gcore", "dd loop", "rg", "strings", "hexdump", "lz4", "yara", "chap")
    lines = [
        f"- {c['row']}: {c['what']}: {c['value']:.2f} {c['unit']}."
        for c in record["checks"]
        if c["unit"] == "x"
        and c["value"] < 1
        and any(f"against {rival}" in c["what"] for rival in rivals)
    ]
    return "\n".join(lines) or "None in this record."


def headlines(record: Record) -> str:
    """A few ratios, for those who read no more."""
    lines = [
        (called, f"{check['value']:.3g}")
        for row, begins, called in HEADLINES
        for check in record["checks"]
        if check["row"] == row and check["what"].startswith(begins)
    ]
    how = conditions(record, {row for row, _, _ in HEADLINES})
    told = f"{record['date']}, {record['machine']['cores']} CPUs. {how}"
    return f"{table(('what', 'times as fast'), lines)}\n\n{told}"


BLOCKS: dict[str, Callable[[Record], str]] = {
    one.__name__: one for one in (machine, checks, timings, missed, peers_win, headlines)
}


def rewritten(text: str, record: Record) -> str:
    """A page with its blocks made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]](record)}\n\n{found[3]}", text)


# --- plots --------------------------------------------------------------------------------------

# Row, what is drawn, labels of the axes.
CURVES = (
    ("scale-size", "gb_per_second", "GiB", "GB/s"),
    ("scale-size", "peak", "GiB", "own peak memory, MB"),
    ("scale-threads", "gb_per_second", "threads", "GB/s"),
    ("scale-regions", "wall", "regions", "seconds"),
)


def curves(record: Record, row: str, measure: str) -> dict[str, list[tuple[float, float]]]:
    """By engine, the points of a row whose engines are called "ENGINE, NUMBER UNIT"."""
    found: dict[str, list[tuple[float, float]]] = {}
    for timing in record["timings"]:
        named = re.fullmatch(r"(.*), ([\d.]+) \w+", timing["engine"])
        if timing["row"] == row and named:
            y = timing[measure] if measure in timing else median(timing, measure)
            if measure == "peak":
                y /= 1e6
            if y:
                found.setdefault(named[1], []).append((float(named[2]), y))
    return found


def draw(record: Record) -> Iterator[Path]:
    """The curves, an SVG each."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fastdump"  # the same bytes for the same record
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    PLOTS.mkdir(exist_ok=True)
    for row, measure, x, y in CURVES:
        lines = curves(record, row, measure)
        if not lines:
            continue
        figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        if row != "scale-threads":
            axes.set_xscale("log")
        if row == "scale-regions":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        axes.legend()
        path = PLOTS / f"{row}-{measure.partition('_')[0]}.svg"
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
        yield path


def rewrite(record: Record) -> None:
    """All pages and plots."""
    for page in PAGES:
        page.write_text(rewritten(page.read_text(), record))
    for path in draw(record):
        print(f"written: {path.relative_to(HERE.parent)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1: a page is not so")
    options = parser.parse_args()
    record = last_record()
    if not options.check:
        rewrite(record)
        return 0
    stale = [page for page in PAGES if rewritten(page.read_text(), record) != page.read_text()]
    for page in stale:
        print(f"not of the last record: {page.relative_to(HERE.parent)}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
