"""The command line, as a user sees it: maps, plan, report, help, demo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import targets
from fastdump.cli import _COMMANDS
from fastdump.text import printable, size

FASTDUMP = [sys.executable, "-m", "fastdump"]


def run(*args: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FASTDUMP, *map(str, args)], capture_output=True, text=True, timeout=100, **kwargs
    )


def maps(pid: int, *args: str) -> dict[str, Any]:
    result = run("maps", pid, "--json", *args)
    assert (result.returncode, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_maps_shows_every_region_once(awkward: targets.Target) -> None:
    lines = Path(f"/proc/{awkward.pid}/maps").read_bytes().splitlines()
    regions = maps(awkward.pid)["regions"]
    assert [f"{int(r['start'], 16):x}-{int(r['end'], 16):x}" for r in regions] == [
        line.split(b" ")[0].decode() for line in lines
    ]


def test_maps_agrees_with_smaps(awkward: targets.Target) -> None:
    rss, start = {}, ""
    for line in Path(f"/proc/{awkward.pid}/smaps").read_bytes().decode("latin1").split("\n"):
        if line.startswith("Rss:"):
            rss[start] = int(line.split()[1]) * 1024
        elif "-" in line.split(" ")[0]:
            start = f"0x{line.split('-')[0].lstrip('0')}"
    for region in maps(awkward.pid)["regions"]:
        # Rss leaves the zero page out, and hugetlb and special pages too.
        if region["label"] != "kernel page":
            assert region["resident"] - region["zero"] == rss[region["start"]], region


def test_totals_add_up(awkward: targets.Target) -> None:
    found = maps(awkward.pid, "-f", "raw")
    for key in ("regions", "size", "resident", "swapped", "dumped"):
        labels = [total[key] for label, total in found["totals"].items() if label != "total"]
        assert sum(labels) == found["totals"]["total"][key]
    resident = sum(r["resident"] for r in found["regions"])
    assert found["totals"]["total"]["resident"] == resident


@pytest.mark.parametrize("sort", ["size", "resident", "swapped"])
def test_numbers_sort_largest_first(awkward: targets.Target, sort: str) -> None:
    values = [r[sort] for r in maps(awkward.pid, "--sort", sort)["regions"]]
    assert values == sorted(values, reverse=True)
    values = [r[sort] for r in maps(awkward.pid, "--sort", sort, "--reverse")["regions"]]
    assert values == sorted(values)


def test_include_and_exclude_keep_their_order(awkward: targets.Target) -> None:
    out_last = maps(awkward.pid, "--include", "????", "--exclude", "heap")
    in_last = maps(awkward.pid, "--exclude", "heap", "--include=????")
    dumped = [
        [r["dump"] for r in found["regions"] if r["label"] == "heap"]
        for found in (out_last, in_last)
    ]
    assert dumped == [["none"], ["all"]]


def test_maps_in_a_pipe_is_plain_lines(awkward: targets.Target) -> None:
    result = run("maps", awkward.pid)
    assert all(line.isprintable() for line in result.stdout.split("\n"))
    assert "not-utf8-\\xff\\xfe" in result.stdout
    assert "new\\nline" in result.stdout


def test_the_plan_reads_a_sample_and_writes_nothing(awkward: targets.Target, in_tmp: Path) -> None:
    result = run("dump", awkward.pid, "--plan", "--json", cwd=in_tmp)
    plan = json.loads(result.stdout)
    assert result.returncode == 0
    assert not list(in_tmp.iterdir())
    assert plan["fits"] is True
    assert 0 < plan["sampled"] <= 64 * (256 << 10)
    assert 0 < plan["size"] <= plan["present"] + (1 << 20)
    assert plan["free"] > 0


def test_the_plan_estimates_size_and_room(in_tmp: Path) -> None:
    with targets.start("fill", "text", "64M") as target:
        plan = json.loads(run("dump", target.pid, "--plan", "--json", cwd=in_tmp).stdout)
        report = json.loads(run("dump", target.pid, "--json", cwd=in_tmp).stdout)
        text = run("dump", target.pid, "--plan", cwd=in_tmp).stdout
    assert plan["size"] == pytest.approx(report["size"], rel=0.2)
    assert plan["present"] == pytest.approx(64 << 20, rel=0.1)
    assert "enough" in text


def test_the_report_names_every_byte(awkward: targets.Target, in_tmp: Path) -> None:
    result = run("dump", awkward.pid, "--json", cwd=in_tmp)
    report = json.loads(result.stdout)
    totals = report["bytes"]
    assert totals["selected"] == sum(v for k, v in totals.items() if k != "selected")
    assert report["exit_code"] == result.returncode == 0
    assert set(report["gaps"]) <= {"past end of file", "guard page"}
    text = run("dump", awkward.pid, "--force", cwd=in_tmp).stdout
    for word in ("selected", "read", "absent", "clean", "past end of file", "VmRSS", "GB/s"):
        assert word in text


def test_quiet_says_nothing(awkward: targets.Target, in_tmp: Path) -> None:
    result = run("dump", awkward.pid, "-q", cwd=in_tmp)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert [p.name for p in in_tmp.iterdir()] == [f"{awkward.pid}.core.lz4"]


@pytest.mark.parametrize("command", [[], *([name] for name in _COMMANDS)], ids=" ".join)
def test_every_command_has_help(command: list[str]) -> None:
    for option in ("--help", "-h"):
        result = run(*command, option)
        assert result.returncode == 0
        assert "Usage:" in result.stdout


def test_the_demo_finds_its_leak() -> None:
    result = run("demo")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    head = next(
        i for i, line in enumerate(lines) if line.split()[:3] == ["bytes", "share", "count"]
    )
    assert "100,000" in lines[head + 1]
    assert "leaked by demo.py" in lines[head + 1]


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 30, "5.0 GiB"),
        (2 << 40, "2.0 TiB"),
        (1 << 60, "1024 PiB"),
    ],
)
def test_sizes(length: int, text: str) -> None:
    assert size(length) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é", "plain é"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\udcff", "\\xff"),
        ("\u202e\u2028", "\\u202e\\u2028"),
    ],
)
def test_nothing_unprintable_is_printed(text: str, shown: str) -> None:
    assert printable(text) == shown
