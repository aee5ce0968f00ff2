"""benchmarks/: the tables are those of the last record, and wrong outputs do not pass."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import report  # noqa: E402
import run  # noqa: E402
from rows import Absent, Check, Need, Result  # noqa: E402
from targets import pattern  # noqa: E402
from truth import PatternTruth, WrongOutput, check_raw_file  # noqa: E402


@pytest.fixture(scope="module")
def record() -> report.Record:
    return report.last_record()


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_last_record(page: Path, record: report.Record) -> None:
    text = page.read_text()
    assert text == report.rewritten(text, record)
    assert (
        text.count("<!-- record:") == text.count("<!-- end -->") == len(report.BLOCK.findall(text))
    )


def test_every_row_of_the_record_has_a_limit(record: report.Record) -> None:
    for row in record["runs"]:
        limits = [
            c for c in record["checks"] if c["row"] == row and c["verdict"] in ("PASS", "FAIL")
        ]
        reason = row in record["absent"] or any(f.startswith(f"{row}:") for f in record["failures"])
        assert limits or reason, row
        assert row in run.ROWS


def test_every_headline_is_a_check(record: report.Record) -> None:
    assert report.headlines(record).count("\n| ") == len(report.HEADLINES) + 1


def test_a_record_of_a_busy_machine_says_so(record: report.Record) -> None:
    for load, said in ((0.2, False), (6.7, True)):
        loaded = record | {"machine": record["machine"] | {"load": load}}
        for block in (report.machine, report.headlines):
            assert ("did other work" in block(loaded)) == said


def test_every_plot_of_the_page_is_there() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text()
    names = [f"{row}-{measure.partition('_')[0]}.svg" for row, measure, _, _ in report.CURVES]
    assert all(f"(plots/{name})" in page and (report.PLOTS / name).exists() for name in names)


def test_curves_are_found_by_the_names_of_engines(record: report.Record) -> None:
    for row, measure, _, _ in report.CURVES:
        found = report.curves(record, row, measure)
        assert found
        for points in found.values():
            assert points == sorted(points)


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (Check("row", "what", 0.9, at_least=0.9), "PASS"),
        (Check("row", "what", 0.89, at_least=0.9), "FAIL"),
        (Check("row", "what", 5, below=5), "FAIL"),
        (Check("row", "what", float("nan"), at_least=1), "FAIL"),
        (Check("row", "what", 5), "-"),
    ],
)
def test_verdicts(check: Check, verdict: str) -> None:
    assert check.verdict == verdict
    shown = run.as_record(Result(checks=[check]))["checks"][0]
    assert json.loads(json.dumps(shown))["verdict"] == verdict
    assert verdict in report.check_table([shown])


def test_a_wrong_byte_is_found(tmp_path: Path) -> None:
    path, seed = tmp_path / "1_mem_10000.bin", 7
    truth = PatternTruth(0x10000, 0x14000, lambda address, length: pattern(address, length, seed))
    right = bytearray(truth.read(truth.start, 0x4000))
    path.write_bytes(right)
    check_raw_file(path, truth)
    for at in (0, 0x1FFF, 0x3FFF):
        right[at] ^= 1
        path.write_bytes(right)
        with pytest.raises(WrongOutput):
            check_raw_file(path, truth)
        right[at] ^= 1
    path.write_bytes(right[:-1])
    with pytest.raises(WrongOutput):
        check_raw_file(path, truth)


def main(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, row: Any, name: str = "row"
) -> tuple[int, report.Record]:
    """The exit status of run.py, and its record, if it has but one row."""
    output, image = tmp_path / "record.json", tmp_path / "image"
    image.write_bytes(bytes(range(256)) * 4096)
    words = ["--only", name, "--size", "1MiB", "--tmpfs", tmp_path, "--disk", tmp_path]
    words += ["--image", image, "--json", output]
    monkeypatch.setattr(run, "ROWS", {name: Need(row)})
    monkeypatch.setattr(run, "RESERVE", 0)
    monkeypatch.setattr(run.heap_image, "make_image", lambda path: path)
    monkeypatch.setattr(run, "busy_cpus", lambda: 0.25)  # it takes seconds
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    status = run.main()
    return status, json.loads(output.read_text())


def test_cpus_are_busy_or_not() -> None:
    assert 0 <= run.busy_cpus(seconds=0.1) <= (os.cpu_count() or 1)


def test_a_wrong_output_fails_loudly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(bench: Any) -> Result:
        raise WrongOutput("bytes differ")

    status, record = main(monkeypatch, tmp_path, wrong)
    assert (status, record["failures"]) == (1, ["row: WrongOutput: bytes differ"])
    assert "FAILED: row: WrongOutput: bytes differ" in capsys.readouterr().err


def test_a_missed_limit_fails_loudly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = Result(checks=[Check("row", "against gcore, wall", 0.5, at_least=2)])
    status, record = main(monkeypatch, tmp_path, lambda bench: slow)
    assert status == 1
    assert "MISSED: row: against gcore, wall: 0.50 x" in capsys.readouterr().err
    for made in (report.missed, report.peers_win):
        assert "row: against gcore, wall: 0.50 x" in made(record)


def test_rows_that_are_run_again_replace_their_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record: report.Record
) -> None:
    slow = Result(checks=[Check("null", "new", 1.0, at_least=2)])
    _, new = main(monkeypatch, tmp_path, lambda bench: slow, "null")
    assert report.merged(record | {"machine": new["machine"] | {"cpu": "another"}}, new) is new
    both = report.merged(record | {"machine": new["machine"] | {"load": 2.0}}, new)
    assert both["machine"]["load"] == 2.0
    assert [c["what"] for c in both["checks"] if c["row"] == "null"] == ["new"]
    assert {c["row"] for c in both["checks"]} == {c["row"] for c in record["checks"]} | {"null"}
    assert both["runs"].keys() == record["runs"].keys()
    assert both["runs"]["null"]["size"] == 1 << 20
    assert "null: 0.000976562 GiB" in report.machine(both)


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(bench: Any) -> Result:
        raise Absent("yara is not installed")

    status, record = main(monkeypatch, tmp_path, absent)
    assert (status, record["absent"]) == (0, {"row": "yara is not installed"})
    assert "Left out: row: yara is not installed" in report.missed(record)
