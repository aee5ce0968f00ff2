"""The Python API for strings, and Parquet files: the same as the command's JSON says."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fastdump
import targets
import test_faults
from fastdump._strings import ENCODING_NAMES, Form, Query, Scanner
from fastdump.errors import NotPermitted, SourceGone, UsageError
from fastdump.matches import opened
from fastdump.selection import Preset, Rule
from fastdump.sources import attach
from fastdump.string_search import WHOLE_MOST, search
from fastdump.survey import Survey
from test_corrupt import in_child
from test_errors import become_nobody, root_only
from test_strings import (
    PAGE,
    PIECE,
    SEED,
    Giant,
    check_one_line,
    crossing,
    giants,
    lines_of,
    rng,
    run,
    text,
    tokens,
    utf8_tokens,
)

__all__ = ["rng"]

numpy = pytest.importorskip("numpy") if os.environ.get("CI") != "true" else __import__("numpy")
pyarrow = (
    pytest.importorskip("pyarrow") if os.environ.get("CI") != "true" else __import__("pyarrow")
)
parquet = __import__("pyarrow.parquet").parquet


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(SEED)
    path = tmp_path_factory.mktemp("api") / "data"
    path.write_bytes(bytes(crossing(rng, PIECE + 777)) + b"\1" + tokens(rng, 5000))
    return path


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[targets.Target]:
    with targets.start("awkward", tmp_path_factory.mktemp("awkward")) as target:
        target.stop()
        yield target


def records_of(*args: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of("--json", *args).splitlines()]


def as_json(match: fastdump.Match) -> dict[str, Any]:
    """What the command says of a match; it knows one name for a region, the match has all."""
    return {
        "address": f"{match.address:#x}",
        "length": match.length,
        "text": match.text,
        "encoding": match.encoding,
        "region": f"{match.region.start:#x}",
        "label": match.label.kind.value,
    }


def without_path(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in r.items() if key != "path"} for r in records]


def check_matches(source: Any, records: list[dict[str, Any]], **options: Any) -> None:
    assert records
    assert [as_json(match) for match in fastdump.strings(source, **options)] == without_path(
        records
    )


# --- matches ----------------------------------------------------------------------------


@pytest.mark.parametrize("length", [4, 10])
@pytest.mark.parametrize("names", ["s", "S", "l", "b", "L", "B", "s,l"])
def test_strings_of_a_file(path: Path, names: str, length: int) -> None:
    records = records_of(path, "-n", length, "-e", names)
    check_matches(path, records, min_length=length, encodings=names.split(","))


def test_more_options(path: Path) -> None:
    check_matches(str(path), records_of(path))
    check_matches(path, records_of(path, "-w"), whitespace=True)


def test_utf8(tmp_path: Path, rng: random.Random) -> None:
    (tmp_path / "utf8").write_bytes(utf8_tokens(rng, 5000))
    records = records_of(tmp_path / "utf8", "-U", "locale")
    check_matches(tmp_path / "utf8", records, encodings=["U"])


def test_strings_of_a_process(stopped: targets.Target) -> None:
    pid = stopped.pid
    check_matches(pid, records_of(pid))
    check_matches(pid, records_of(pid, "--all", "-n", 6), preset=Preset.ALL, min_length=6)
    check_matches(pid, records_of(pid, "--with-libraries"), with_libraries=True)
    rules = [Rule(False, "????"), Rule(True, "heap")]
    records = records_of(pid, "--exclude", "????", "--include", "heap")
    check_matches(pid, records, rules=rules)
    assert {record["label"] for record in records} == {"heap"}


def test_page_tables_looked_at_before_or_on_the_way(
    stopped: targets.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dense target is searched without a first look at what it holds; this one is made one."""
    known = []
    for dense in (False, True):
        monkeypatch.setattr(Survey, "is_dense", dense)
        for encoding in "slB":
            lines: list[bytes] = []
            query = Query(4 if encoding == "s" else 1, (encoding,))  # no long ones are wide
            scanners = [Scanner(query, Form(16)) for _ in range(2)]
            with attach(stopped.pid) as source, closing(source.place(with_libraries=True)) as place:
                report = search(
                    place, scanners, lambda found, to=lines: to.append(bytes(found.lines))
                )
            tally = replace(report.tally, read_ns=0)
            known.append((b"".join(lines), report.gaps, tally))
    assert known[:3] == known[3:]
    assert all(lines and gaps for lines, gaps, _ in known)


def test_an_open_place(stopped: targets.Target) -> None:
    with opened(stopped.pid) as place:
        first = list(fastdump.strings(place))
        second = list(fastdump.strings(place, min_length=8))
    assert [match for match in first if match.length >= 8] == second
    assert {match.region for match in first} <= set(place.regions)


def test_giants_come_whole(tmp_path: Path, rng: random.Random) -> None:
    data, placed = giants(rng)
    (tmp_path / "giants").write_bytes(data)
    found = {(m.address, m.encoding): m for m in _long(tmp_path / "giants", "slbL")}
    for giant in placed:
        _check_giant(found[giant.at, giant.encoding], giant)


def _long(path: Path, encodings: str) -> Iterator[fastdump.Match]:
    return fastdump.strings(path, min_length=70_000, encodings=list(encodings))


def _check_giant(match: fastdump.Match, giant: Giant) -> None:
    assert match.length == len(giant.text)
    assert match.text.encode("ascii") == giant.text.replace(b"\0", b"")


def test_of_the_longest_only_the_beginning(tmp_path: Path, rng: random.Random) -> None:
    part = text(rng, WHOLE_MOST + 5 * PAGE + 1, "s")
    (tmp_path / "longest").write_bytes(b"\1" + part + b"\1then")
    long, then = fastdump.strings(tmp_path / "longest")
    assert (long.address, long.length, then.text) == (1, len(part), "then")
    assert long.text.encode() == part[:WHOLE_MOST]
    done = run("--json", tmp_path / "longest")
    assert done.code == 0
    assert [json.loads(line)["text"] for line in done.out.splitlines()] == [long.text, "then"]
    assert "only its first 64.0 MiB are taken" in done.err


def test_errors(tmp_path: Path) -> None:
    with targets.start("exiter", PAGE) as target:
        pid = target.pid
    with pytest.raises(SourceGone):
        list(fastdump.strings(pid))
    for source in (tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError):
            list(fastdump.strings(source))


@root_only
def test_a_process_of_another_user() -> None:
    def work(say: Callable[[str], None]) -> None:
        become_nobody()
        with pytest.raises(NotPermitted):
            list(fastdump.strings(target.pid))
        say("refused")

    with targets.start("exiter", PAGE) as target:
        list(fastdump.strings(target.pid))  # imports what nobody may not read
        assert in_child(work) == ["refused"]


@pytest.mark.parametrize(
    "options",
    [{"encodings": ["utf-8"]}, {"encodings": []}, {"encodings": ["s"] * 20}, {"min_length": 0}],
    ids=str,
)
def test_options_that_make_no_sense(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        list(fastdump.strings(path, **options))


def test_the_target_exits_half_way() -> None:
    with targets.start("exiter", 64 << 20) as target:
        matches = fastdump.strings(target.pid)
        assert next(matches).text
        target.send(b"x")
        assert target.wait() == 0
        with pytest.raises(SourceGone, match="exited"):
            list(matches)


@pytest.mark.parametrize("name", ["fifo", "/dev/zero", "/proc/self/environ"])
def test_what_does_not_tell_its_size_is_refused(name: str, tmp_path: Path) -> None:
    """And a pipe without a writer is not waited for."""
    os.mkfifo(tmp_path / "fifo")
    before = os.listdir("/proc/self/fd")
    for find in (fastdump.strings, lambda path: fastdump.search(path, ["x"])):
        with pytest.raises(UsageError, match="no regular file"):
            list(find(tmp_path / name))
    assert os.listdir("/proc/self/fd") == before


def test_nothing_stays_open(path: Path, stopped: targets.Target) -> None:
    before = os.listdir("/proc/self/fd")
    for source in (path, stopped.pid):
        matches = fastdump.strings(source)
        next(matches)
        matches.close()  # type: ignore[attr-defined]
        list(fastdump.strings(source))
    assert set(os.listdir("/proc/self/fd")) <= set(before)


# --- columns ----------------------------------------------------------------------------


@pytest.mark.parametrize("encodings", [["s"], ["S"], ["s", "l"], ["B"], ["U"]], ids=" ".join)
def test_batches_are_columns_of_the_matches(path: Path, encodings: list[str]) -> None:
    count = 0
    for batch in fastdump.batches(path, encodings=encodings, min_length=2):
        matches = list(batch)
        assert len(batch) == len(matches)
        count += len(batch)
        array = batch.to_numpy()
        assert array["address"].tolist() == [match.address for match in matches]
        assert array["length"].tolist() == [match.length for match in matches]
        codes = [ENCODING_NAMES[code] for code in array["encoding"].tolist()]
        assert codes == [match.encoding for match in matches]
        regions = [batch.place.regions[number] for number in array["region"].tolist()]
        assert regions == [match.region for match in matches]
        codec = "utf-8" if encodings == ["U"] else "latin-1"
        texts = [
            batch.text[at : at + size].decode(codec, "replace")
            for at, size in zip(array["text"].tolist(), array["text_length"].tolist(), strict=True)
        ]
        assert texts == [match.text for match in matches]
        _check_columns(batch.to_arrow(), matches, codec)
    assert count == len(list(fastdump.strings(path, encodings=encodings, min_length=2)))
    assert count


def _check_columns(columns: Any, matches: list[fastdump.Match], codec: str) -> None:
    columns.validate(full=True)
    found = columns.to_pydict()
    assert list(found) == ["address", "length", "text", "encoding", "region", "label"]
    assert found["address"] == [match.address for match in matches]
    assert found["length"] == [match.length for match in matches]
    texts = [t.decode(codec, "replace") if isinstance(t, bytes) else t for t in found["text"]]
    assert texts == [match.text for match in matches]
    assert found["encoding"] == [match.encoding for match in matches]
    assert found["label"] == [match.label.kind.value for match in matches]
    paths = [match.region.path.encode("utf-8", "replace").decode() for match in matches]
    assert all(path in ("", r) for path, r in zip(paths, found["region"], strict=True))


def test_batches_of_a_process(stopped: targets.Target) -> None:
    for batch in fastdump.batches(stopped.pid, preset=Preset.ALL, min_length=6):
        _check_columns(batch.to_arrow(), list(batch), "latin-1")


def test_a_batch_outlives_the_next(path: Path) -> None:
    kept = list(fastdump.batches(path, min_length=3))
    assert len(kept) > 1
    matches = [match for batch in kept for match in batch]
    assert matches == list(fastdump.strings(path, min_length=3))


# --- Parquet ----------------------------------------------------------------------------


def read_parquet(file: Path) -> list[dict[str, Any]]:
    """As the command's JSON has it."""
    return [
        {
            "address": f"{row['address']:#x}",
            "length": row["length"],
            "text": row["text"]
            if isinstance(row["text"], str)
            else row["text"].decode("utf-8" if row["encoding"] == "U" else "latin-1", "replace"),
            "encoding": row["encoding"],
            "path": row["region"],
            "label": row["label"],
        }
        for row in parquet.read_table(file).to_pylist()
    ]


def without_region(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in r.items() if key != "region"} for r in records]


def sorted_keys(records: list[dict[str, Any]]) -> list[list[tuple[str, Any]]]:
    return [sorted(record.items()) for record in records]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-n", "2"),
        ("-e", "S"),
        ("-e", "s,l"),
        ("-e", "S,B"),
        ("--unique",),
        ("--contains", "ab"),
        ("--match", "^[a-z]+$"),
        ("--match", r"\bab"),
        ("--match", r"[a-z]\b", "-n", "3"),
        ("--threads", "3"),
    ],
    ids=" ".join,
)
def test_parquet_of_a_file(path: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    out = tmp_path / "out.parquet"
    assert lines_of(path, *options, "--parquet", out) == b""
    assert os.listdir(tmp_path) == ["out.parquet"]
    records = records_of(path, *options)
    assert records
    assert sorted_keys(read_parquet(out)) == sorted_keys(without_region(records))


@pytest.mark.parametrize("how", ["locale", "hex"])
def test_parquet_of_utf8(tmp_path: Path, rng: random.Random, how: str) -> None:
    """What strings(1) takes for UTF-8 is not always what Unicode allows."""
    (tmp_path / "utf8").write_bytes(utf8_tokens(rng, 2000))
    out = tmp_path / "out.parquet"
    assert lines_of(tmp_path / "utf8", "-U", how, "--parquet", out) == b""
    records = records_of(tmp_path / "utf8", "-U", how)
    assert sorted_keys(read_parquet(out)) == sorted_keys(without_region(records))


def test_parquet_of_processes_and_files(
    stopped: targets.Target, path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    sources = (stopped.pid, path, stopped.pid)
    assert lines_of(*sources, "--all", "-n", 8, "--parquet", out) == b""
    found = read_parquet(out)
    expected = without_region(records_of(*sources, "--all", "-n", 8))
    for record in found + expected:  # a path may hold bytes that are no UTF-8
        record["path"] = record["path"].encode("utf-8", "replace").decode()
    assert sorted_keys(found) == sorted_keys(expected)


def test_parquet_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert lines_of(tmp_path / "empty", "--parquet", tmp_path / "out") == b""
    assert read_parquet(tmp_path / "out") == []


def test_parquet_of_a_giant(tmp_path: Path, rng: random.Random) -> None:
    data, placed = giants(rng)
    (tmp_path / "giants").write_bytes(data)
    out = tmp_path / "out"
    assert lines_of(tmp_path / "giants", "-n", 70_000, "-e", "s,l", "--parquet", out) == b""
    found = {(int(r["address"], 16), r["encoding"]): r["text"] for r in read_parquet(out)}
    for giant in placed[:2]:
        assert found[giant.at, giant.encoding].encode() == giant.text.replace(b"\0", b"")


def test_an_existing_file_is_kept(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"precious")
    check_one_line(run(path, "--parquet", out), 7, "exists")
    assert out.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["out"]
    assert lines_of(path, "--parquet", out, "--force") == b""
    assert read_parquet(out)
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_is_not_there(path: Path, tmp_path: Path) -> None:
    done = run(path, "--parquet", tmp_path / "missing" / "out")
    check_one_line(done, 7, "cannot write", "No such file")


@pytest.mark.parametrize("source", ["missing", "gone"])
def test_nothing_is_left_of_a_source_that_fails(tmp_path: Path, source: str) -> None:
    with targets.start("exiter", PAGE) as target:
        pid = target.pid
    out = tmp_path / "out"
    done = run(pid if source == "gone" else tmp_path / "missing", "--parquet", out)
    check_one_line(done, 4 if source == "gone" else 2)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_it_fails_half_way(tmp_path: Path, number: signal.Signals) -> None:
    """The target is killed, or fastdump is told to stop, once some of the file is there."""
    part = tmp_path / "out.part"
    with targets.start("exiter", 64 << 20) as target:
        process = test_faults.start(
            "strings", target.pid, "-n", 2, "--parquet", tmp_path / "out", "--threads", 1
        )
        assert test_faults.reach(process, lambda pid: part.stat().st_size > 1 << 16)
        if number is signal.SIGKILL:
            target.kill()
        else:
            process.send_signal(number)
        error = test_faults.finish(process)
    assert process.returncode == (4 if number is signal.SIGKILL else 130), error
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
@pytest.mark.parametrize("size", [0, 4096, 256 << 10])
def test_the_disk_is_full(path: Path, tmp_path: Path, size: int) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    options = f"size={size or 4096},nr_inodes={10 if size else 1}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder]).returncode:
        pytest.skip("may not mount")
    try:
        done = run(path, "-n", 1, "--parquet", folder / "out")
        check_one_line(done, 7, "cannot write", "No space left on device")
        assert os.listdir(folder) == []
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("size", [0, 1 << 20], ids=["empty", "hole"])
def test_a_file_without_data_is_closed(tmp_path: Path, size: int) -> None:
    path = tmp_path / "none"
    with path.open("wb") as file:
        file.truncate(size)
    before = os.listdir("/proc/self/fd")
    assert list(fastdump.strings(path)) == []
    assert set(os.listdir("/proc/self/fd")) <= set(before)
