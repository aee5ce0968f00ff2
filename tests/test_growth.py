"""Growth: leaks that were planted are what is named first; pages that were saved, compared."""

from __future__ import annotations

import copy
import itertools
import json
import shlex
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import targets
from fastdump.cli import cli, main, why_command
from fastdump.errors import CorruptDump
from fastdump.growth import Series, growth, suspects
from fastdump.ledger import UNKNOWN
from fastdump.source import Source
from fastdump.text import size
from fastdump.why import Why, why
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
    kind = {"language": "C++", "name": "Item", "objects": 10, "example": 1, "own": True}
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
import collections, datetime, sys
class Response:
    def __init__(self, number):
        self.number, self.body = number, f"<p>answer {number}</p>" * 3
        self.when, self.next = datetime.datetime.now(), collections.deque([number])
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


@pytest.mark.parametrize("code", [4, 130])
def test_samples_that_are_cut_off_are_told(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether the target ends or the user has had enough. Pages of before are not kept."""
    pages = list[weakref.ref[Why]]()
    with targets.start("sessions") as target:

        def look(source: Source, **options: Any) -> Why:
            if len(pages) == 2:
                assert not any(found() for found in pages)
                if code == 130:
                    raise KeyboardInterrupt
                target.kill()
            found = why(source, **options)
            pages.append(weakref.ref(found))
            if len(pages) == 1:
                target.send(b"x")
                target.read_truth()
            return found

        monkeypatch.setattr(why_command, "why", look)
        command = ["why", str(target.pid), "--no-strings", "--json", "--every", "1ms"]
        with pytest.raises(SystemExit) as end:
            main(command)
    assert end.value.code == code
    grown = json.loads(capsys.readouterr().out)
    (session,) = (each for each in grown if each["name"] == "C++ Session")
    assert session["counts"][1] - session["counts"][0] == 20_000
    assert len(session["bytes"]) == 2


def test_what_is_not_sure_is_told(in_tmp: Path) -> None:
    """A walk that broke is no shrinkage: each look says what it could not make out."""
    with targets.start("sessions") as target:
        saved = told(target.pid, count=500).to_json()
    Path("sure.json").write_text(json.dumps(saved))
    saved["problems"] = ["malloc has no chunk at 0x10, where one must be \x1b"]
    Path("unsure.json").write_text(json.dumps(saved))
    sentence = "not sure: unsure.json: malloc has no chunk at 0x10, where one must be \\x1b\n"
    for names in (["sure.json", "unsure.json"], ["unsure.json", "sure.json"]):
        found = CliRunner().invoke(cli, ["diff", *names])
        assert f"\n{sentence}" in found.stdout
        found = CliRunner().invoke(cli, ["diff", *names, "--json"])
        assert f"fastdump: {sentence}" in found.stderr
        assert json.loads(found.stdout) == []


def test_what_is_swapped_out_is_no_shrinkage(in_tmp: Path) -> None:
    """Of a dump whose heap was swapped, and left out for want of room."""
    with targets.start("sessions") as target:
        for name in ("before", "behind"):
            command = ["dump", str(target.pid), "-q", "-f", "raw", "-o", name]
            assert CliRunner().invoke(cli, command).exit_code == 0
    manifest = json.loads(Path("behind/manifest.json").read_text())
    heap = next(region for region in manifest["regions"] if region["label"] == "heap")
    gap = {"start": heap["start"], "end": heap["end"], "reason": "swapped", "errno": 0}
    Path("behind/manifest.json").write_text(json.dumps({**manifest, "gaps": [gap]}))
    found = CliRunner().invoke(cli, ["diff", "before", "behind"])
    length = size(int(heap["end"], 16) - int(heap["start"], 16))
    assert f"not sure: behind: {length} are swapped out, and were not read\n" in found.stdout


def test_every_says_what_is_not_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first look and the last."""
    numbers = itertools.count()

    def look(source: Source, **options: Any) -> Why:
        found = why(source, **options)
        found.problems.append(f"look {next(numbers)}")
        return found

    monkeypatch.setattr(why_command, "why", look)
    with targets.start("sessions") as target:
        command = ["why", str(target.pid), "--no-strings", "--every", "1ms", "--count", "3"]
        lines = CliRunner().invoke(cli, command).stdout.splitlines()
    unsure = [line for line in lines if line.startswith("not sure: ")]
    assert unsure == [f"not sure: look {n}" for n in (0, 1, 0, 2)]


def leaves(found: Any) -> Iterator[tuple[Any, Any]]:
    """Where each value of a page lies: its container, and its key there."""
    for key, value in found.items() if isinstance(found, dict) else enumerate(found):
        yield found, key
        if isinstance(value, (dict, list)):
            yield from leaves(value)


def test_a_page_of_wrong_types_is_refused(in_tmp: Path) -> None:
    """Whichever of its values is of another type: it is told, or does not matter."""
    row: dict[str, Any] = dict.fromkeys(("language", "name", "path", "text", "module"), "x")
    row |= dict.fromkeys(("bytes", "chunks", "objects", "strings", "size", "example"), 8)
    row["own"] = False
    tables = {name: [row] for name in ("ledger", "modules", "types", "sizes", "templates")}
    gap = {"start": 0, "end": 8, "reason": "swapped", "errno": 0}
    whole = page(**tables, gaps=[gap], problems=["one"])
    Path("new.json").write_text(json.dumps(page(gaps=[], problems=[])))
    codes = set()
    for number in range(len(list(leaves(whole)))):
        for wrong in (None, "text", 1.5, [], {}, [[]], 1 << 70, 7):
            damaged = json.loads(json.dumps(whole))
            found, key = list(leaves(damaged))[number]
            found[key] = wrong
            Path("old.json").write_text(json.dumps(damaged))
            run = CliRunner().invoke(cli, ["diff", "old.json", "new.json"])
            assert isinstance(run.exception, (CorruptDump, SystemExit, type(None))), damaged
            codes.add(
                CorruptDump.exit_code if isinstance(run.exception, CorruptDump) else run.exit_code
            )
    assert codes == {0, 6}


def test_estimates_that_are_compared_are_told(in_tmp: Path) -> None:
    """What --json printed may be saved, too."""
    for name, sampled in (("one", 1), ("two", 32)):
        Path(name).write_text(json.dumps(page(gaps=[], problems=[], sampled=sampled)))
    for names in (("one", "one"), ("one", "two")):
        found = CliRunner().invoke(cli, ["diff", *names])
        assert found.exit_code == 0
        assert ("not sure: two: its text is estimated" in found.output) == ("two" in names)


def test_every_command_that_is_suggested_works(in_tmp: Path) -> None:
    """Of a dump, whatever its name is."""
    name = "it's a $HOME `dump`.core"
    with targets.start("objects") as target:
        made = CliRunner().invoke(cli, ["dump", str(target.pid), "-q", "-f", "core", "-o", name])
        assert made.exit_code == 0
    found = json.loads(CliRunner().invoke(cli, ["why", name, "--json"]).stdout)
    commands = {each["command"] for each in found["suspects"]}
    commands |= {each.command for each in growth([page(), found], [0, 1])}
    lines = CliRunner().invoke(cli, ["leaks", name]).stdout.splitlines()
    commands |= {
        line.strip().replace("LATER", shlex.quote(name)) for line in lines if "  fastdump" in line
    }
    assert {command.split()[1] for command in commands} == {
        "hexdump", "strings", "info", "why", "diff"
    }  # fmt: skip
    for command in {shlex.split(command)[1]: command for command in commands}.values():
        program, *words = shlex.split(command)
        assert program == "fastdump"
        assert CliRunner().invoke(cli, words).exit_code == 0, command


@pytest.mark.parametrize(
    "text",
    ["{}", '{"version": 1}', "{", '{"version": 2}', '{"ledger": 5}', '{"a":' + "[" * 100_000],
)
def test_what_is_no_page_is_refused(text: str, in_tmp: Path) -> None:
    Path("page.json").write_text(text)
    with pytest.raises(SystemExit) as end:
        main(["diff", "page.json", "page.json"])
    assert end.value.code == 6


def _parted(line: str) -> tuple[str, str, str]:
    return line.rpartition(" ")


def folded(pid: int, *options: str) -> dict[str, int]:
    found = CliRunner().invoke(cli, ["why", str(pid), "--folded", "--no-strings", *options])
    return {stack: int(n) for stack, _, n in map(_parted, found.output.splitlines())}


def test_a_heap_that_is_left_out_is_folded_once() -> None:
    with targets.start("objects") as target:
        left_out, whole = folded(target.pid, "--exclude", "heap"), folded(target.pid)
    # Of chunks the pages that were never touched count in one of the two.
    assert sum(left_out.values()) == pytest.approx(sum(whole.values()), rel=0.05)
    assert left_out[UNKNOWN] > 20_000 * 80


def test_folded_lines_are_the_ledger() -> None:
    with targets.start("objects") as target:
        lines = folded(target.pid)
        page = told(target.pid, strings=False)
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
