"""Growth: leaks that were planted are what is named first; pages that were saved, compared."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import targets
from fastdump.cli import cli, main
from fastdump.growth import Series, growth, suspects
from test_real import child
from test_why import told


def page(**tables: Any) -> dict[str, Any]:
    names = ("ledger", "modules", "types", "sizes", "templates")
    return {"version": 1, "source": "1", **{name: [] for name in names}, **tables}


def test_what_grows_with_time_is_called_steady() -> None:
    def pages(lengths: list[int]) -> list[dict[str, Any]]:
        return [page(ledger=[{"name": "stacks", "bytes": length}]) for length in lengths]

    for lengths, steady in (
        ([0, 10, 20, 30], True),
        ([5, 105, 204, 306], True),
        ([0, 10, 5, 30], False),  # it shrank meanwhile
        ([0, 0, 0, 30], False),  # at once
        ([0, 10], False),  # two samples make a line of anything
    ):
        (found,) = growth(pages(lengths), range(len(lengths)))
        assert found.more_bytes == lengths[-1] - lengths[0]
        assert found.steady is steady, lengths
    assert growth(pages([7, 7]), [0, 1]) == []


def test_what_is_new_or_gone_counts_from_nothing() -> None:
    new = page(templates=[{"text": "x#", "strings": 3, "bytes": 300}])
    (found,) = growth([page(), new], [0, 1])
    assert (found.kind, found.bytes, found.counts) == ("text", [0, 300], [0, 3])
    (found,) = growth([new, page()], [0, 1])
    assert found.more_bytes == -300
    assert suspects([found]) == []


def test_rows_of_one_name_are_one() -> None:
    """Types of several modules, text that was cut alike: the largest is not lost."""
    kind = {"language": "C++", "name": "Item", "objects": 10, "example": 1}
    old = page(
        types=[{**kind, "module": "a.so", "bytes": 500}, {**kind, "module": "b.so", "bytes": 100}],
        templates=[{"text": "<html>", "strings": 2, "bytes": n} for n in (900, 800)],
    )
    new = copy.deepcopy(old)
    new["types"][0].update(bytes=5000, objects=100, example=0xABC)
    new["templates"][0].update(bytes=9000, strings=20)
    item, text = growth([old, new], [0, 1])[::-1]
    assert (item.name, item.bytes, item.counts) == ("C++ Item", [600, 5100], [20, 110])
    assert " abc " in item.command
    assert (text.name, text.bytes, text.counts) == ("<html>", [1700, 9800], [4, 22])


def test_what_comes_and_goes_is_forgotten() -> None:
    series = Series()
    for number in range(100):
        text = [{"text": f"{n} of # / {number}", "strings": 9, "bytes": 900} for n in range(50)]
        series.add(page(templates=text, ledger=[{"name": "stacks", "bytes": number}]), number)
    assert len(series._rows) == 101
    assert [len(each.bytes) for each in series.grown()] == [100] * 101


def test_a_map_of_sessions_is_the_first_suspect() -> None:
    with targets.start("sessions") as target:
        pages = [told(target.pid, count=500).to_json()]
        target.send(b"x")
        target.read_truth()
        pages.append(told(target.pid, count=500).to_json())
    first = suspects(growth(pages, [0, 1]))[0]
    assert (first.kind, first.name, first.more) == ("type", "C++ Session", 20_000)


PYTHON = """
import sys
class Response:
    def __init__(self, number):
        self.number, self.body = number, f"<p>answer {number}</p>" * 3
class Worker:
    pass
cache, number = {}, 0
workers = [Worker() for _ in range(5000)]
while True:
    for _ in range(10_000):
        number += 1
        cache[f"request-{number:08}"] = Response(number)
        workers[number % 5000] = Worker()
    print("ready", flush=True)
    if not sys.stdin.readline():
        break
"""


def test_a_cache_of_responses_is_the_first_suspect() -> None:
    with child(sys.executable, "-c", PYTHON, ready=b"ready") as process:
        assert process.stdin
        assert process.stdout
        pages = [told(process.pid, count=500).to_json()]
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        pages.append(told(process.pid, count=500).to_json())
    first = suspects(growth(pages, [0, 1]))[0]
    assert (first.kind, first.name) == ("type", "Python Response")
    assert first.more == pytest.approx(10_000, rel=0.001)


def test_saved_pages_and_sources_are_compared(in_tmp: Path) -> None:
    run = CliRunner().invoke
    with targets.start("sessions") as target:
        found = run(cli, ["why", str(target.pid), "--save", "before.json"])
        assert found.exit_code == 0, found.output
        target.send(b"x")
        target.read_truth()
        assert run(cli, ["why", str(target.pid), "--save", "behind.json"]).exit_code == 0
        saved = run(cli, ["diff", "before.json", "behind.json", "--json"]).output
        live = run(cli, ["diff", "before.json", str(target.pid), "--json"]).output
        text = run(cli, ["diff", "before.json", "behind.json"]).output
    assert Path("before.json").stat().st_size < 1 << 19
    assert Path("before.json").stat().st_mode & 0o777 == 0o600
    assert json.loads(saved) == json.loads(live)
    assert "type C++ Session grew: 20,000 more, " in text


def test_every_looks_again() -> None:
    with targets.start("sessions") as target:
        command = ["why", str(target.pid), "--no-strings", "--every", "1ms", "--count", "3"]
        found = CliRunner().invoke(cli, [*command, "--json"])
        grown = json.loads(found.output)
        lines = CliRunner().invoke(cli, command).output
    # The kernel may map a page of a file more; of what the program has, nothing grows.
    assert {each["kind"] for each in grown} <= {"ledger"}
    assert all(len(each["bytes"]) == 3 for each in grown)
    assert lines.count("\n\n") >= 2


@pytest.mark.parametrize("text", ["{}", '{"version": 1}', "{", '{"version": 2}', '{"ledger": 5}'])
def test_what_is_no_page_is_refused(text: str, in_tmp: Path) -> None:
    Path("page.json").write_text(text)
    with pytest.raises(SystemExit) as end:
        main(["diff", "page.json", "page.json"])
    assert end.value.code == 6


def _parted(line: str) -> tuple[str, str, str]:
    return line.rpartition(" ")


def test_folded_lines_are_the_ledger() -> None:
    with targets.start("objects") as target:
        found = CliRunner().invoke(cli, ["why", str(target.pid), "--folded", "--no-strings"])
        page = told(target.pid, strings=False)
    lines = {stack: int(n) for stack, _, n in map(_parted, found.output.splitlines())}
    circle = next(s for s in lines if ";C++ shop::Circle;" in s)
    assert circle.endswith("objects;C++ shop::Circle;65 to 128 bytes")
    assert lines[circle] == 20_000 * 80
    assert sum(length for stack, length in lines.items() if ";" in stack) == page.live_bytes
    for bucket in page.ledger[1:]:
        assert lines[bucket.name] == pytest.approx(bucket.bytes, abs=1 << 16)


def test_a_program_without_time_is_refused() -> None:
    command = [sys.executable, "-m", "fastdump", "why", "1", "--every", "soon"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2
    assert "'soon' is no time" in found.stderr


@pytest.mark.parametrize("option", [["--save", "x"], ["--pprof", "x"], ["--folded"]])
def test_a_page_is_of_one_look(option: list[str], in_tmp: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(["why", "1", "--every", "1s", *option])
    assert end.value.code == 2
    assert not Path("x").exists()
