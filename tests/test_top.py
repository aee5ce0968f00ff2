"""``fastdump strings --top``: what fills memory, counted by sort(1) and uniq(1) too."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import targets
from fastdump._native import PAGE_SIZE
from fastdump._strings import TALLIED_TEXT, Query, Scanner, Table
from fastdump.labels import Kind
from fastdump.place import open_regular
from fastdump.sweep import SAMPLE
from fastdump.top import top
from test_real import child, python
from test_strings import CODECS, FASTDUMP, SEED, gnu, lines_of, rng, run

__all__ = ["rng"]

MOST = "100000"


def rows_of(*args: object) -> list[dict[str, Any]]:
    """The rows, as JSON."""
    return [json.loads(line) for line in lines_of("--json", *args).splitlines()]


def uniq(path: Path, *options: object) -> Counter[str]:
    """Each string, and how many there are: ``strings FILE | sort | uniq -c``."""
    done = subprocess.run(
        ["sh", "-c", "LC_ALL=C sort | LC_ALL=C uniq -c"],
        input=gnu(*options, path),
        stdout=subprocess.PIPE,
        check=True,
    )
    found = Counter()
    for line in done.stdout.split(b"\n")[:-1]:
        count, _, text = line.lstrip(b" ").partition(b" ")
        found[text.decode("latin-1")] = int(count)
    return found


def write(path: Path, *texts: str, codec: str = "latin-1") -> Path:
    path.write_bytes("\1".join([*texts, ""]).encode(codec))
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some thousands of different strings, some of them often, over several pieces."""
    rng = random.Random(SEED)
    known = ["".join(rng.choices("abcdef 0123", k=rng.randrange(4, 100))) for _ in range(4000)]
    texts = rng.choices(known, weights=[1 / (i + 1) for i in range(4000)], k=200_000)
    path = tmp_path_factory.mktemp("many") / "many"
    path.write_bytes("\0".join(texts).encode() + bytes(9 << 20) + known[0].encode())
    return path


@pytest.mark.parametrize("every", [2, 3, 7])
def test_a_sample_has_the_strings_of_its_pieces(tmp_path: Path, every: int) -> None:
    """Of a file with holes: each of its strings, and no other one."""
    print(f"FASTDUMP_TEST_SEED={SEED}")
    rng, path, length = random.Random(SEED), tmp_path / "data", 8
    with path.open("wb") as file:
        for size in (5 * SAMPLE + 12345, 3 * PAGE_SIZE, SAMPLE // 2, 11 * SAMPLE, 17, 9000):
            file.seek(-(-file.tell() // PAGE_SIZE) * PAGE_SIZE + PAGE_SIZE)
            data = rng.randbytes(size // 64).hex("\0", rng.randrange(4, 40)).encode()
            file.write((data * 64)[:size])
    place = open_regular(str(path))
    found = top(place, Query(min_length=length), 1 << 20, exact=True, every=every)
    begin, wanted, bounds = 0, Counter[str](), []
    for s in place.slices:  # all of them one after the other
        bounds.append((s.address, s.address + s.length, begin))
        begin += -(-s.length // PAGE_SIZE) * PAGE_SIZE
    for line in gnu("-n", length, "-t", "d", path).decode().splitlines():
        address, _, text = line.strip().partition(" ")
        known = int(address) + length - 1  # where it has become one
        start, begin = next((b[0], b[2]) for b in bounds if b[0] <= known < b[1])
        position = begin + known - start
        piece = position // (SAMPLE * every) * SAMPLE * every
        wanted[text[:TALLIED_TEXT]] += begin <= piece <= position < piece + SAMPLE
    place.close()
    assert {row.text.decode(): row.count for row in found.rows} == dict(+wanted)
    assert 0 < sum(wanted.values()) < len(gnu("-n", length, path).splitlines())


# --- equal strings ----------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_exact_counts_are_those_of_uniq(many: Path, threads: int) -> None:
    rows = rows_of("--top", MOST, "--exact", many, "--threads", threads)
    assert {row["low_by_at_most"] for row in rows} == {0}
    assert {row["text"]: row["count"] for row in rows} == uniq(many)
    for row in rows:
        assert row["bytes"] == row["count"] * len(row["text"])
        assert row["in"] == [str(many)]
        assert not row["cut"]
    sizes = [row["bytes"] for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    read = many.stat().st_size
    assert rows[0]["share"] == pytest.approx(sizes[0] / read, rel=0.01)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_address_is_one_of_the_strings(many: Path, threads: int) -> None:
    data = many.read_bytes()
    for row in rows_of("--top", "50", "--exact", many, "--threads", threads):
        at = int(row["address"], 16)
        assert data[at : at + len(row["text"])].decode() == row["text"]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_address_is_the_first_one(many: Path, threads: int) -> None:
    first: dict[str, int] = {}
    for line in gnu("-t", "d", many).decode().splitlines():
        offset, _, text = line.lstrip(" ").partition(" ")
        first.setdefault(text, int(offset))
    rows = rows_of("--top", MOST, "--exact", many, "--threads", threads)
    assert {row["text"]: int(row["address"], 16) for row in rows} == first


def test_merged_tables_keep_the_first_address() -> None:
    """Each thread has a table: which of them has the first string is chance."""
    tables = []
    for before in (640, 64):
        tables.append(Table(64, exact=True))
        scanner = Scanner(Query(), table=tables[-1])
        assert not list(scanner.feed(b"\1" * before + b"planted\1", 0, True))
        tables[-1].settle()
    tables[0].merge(tables[1])
    (row,) = tables[0].top(5)
    assert (row.text, row.count, row.length, row.address) == (b"planted", 2, 14, 64)


def test_the_table_says_the_same(many: Path) -> None:
    rows = rows_of("--top", "20", "--exact", many)
    out = lines_of("--top", "20", "--exact", many).decode().splitlines()
    head, *shown, blank, summary = out
    assert head.split() == ["bytes", "share", "count", "first", "at", "in", "text"]
    assert (len(shown), blank) == (20, "")
    for line, row in zip(shown, rows, strict=True):
        assert f" {row['count']:,} " in line
        assert f" {row['address'][2:]} " in line
        assert line.rstrip().endswith(row["text"].rstrip())
    assert f"{sum(uniq(many).values()):,} strings" in summary
    assert summary.endswith("all exact")


def test_fewer_rows_are_the_first_of_more(many: Path) -> None:
    all_rows = rows_of("--top", MOST, many)
    for count in (1, 7, 100):
        assert rows_of("--top", count, many) == all_rows[:count]
    assert len(all_rows) > 100


def test_nothing_to_show(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert rows_of("--top", "3", tmp_path / "empty") == []
    done = run("--top", "3", tmp_path / "empty")
    assert (done.code, done.err) == (0, "")
    assert b"0 strings" in done.out


@pytest.mark.parametrize("encoding", ["S", "l", "b", "L", "B"])
@pytest.mark.parametrize("options", [("--exact",), ()], ids=["exact", "alike"])
def test_other_encodings(
    tmp_path: Path, rng: random.Random, encoding: str, options: tuple[str, ...]
) -> None:
    known = ["".join(rng.choices("abcxyz -", k=rng.randrange(4, 60))) for _ in range(300)]
    path = write(tmp_path / "wide", *rng.choices(known, k=20_000), codec=CODECS[encoding])
    rows = rows_of("--top", MOST, "-e", encoding, *options, path)
    width = len("x".encode(CODECS[encoding]))
    expected = uniq(path, "-e", encoding)
    assert {row["text"]: row["count"] for row in rows} == expected
    assert all(row["bytes"] == row["count"] * len(row["text"]) * width for row in rows)


def test_utf8(tmp_path: Path) -> None:
    path = write(tmp_path / "utf8", *["naïve 日本"] * 5, *["plain"] * 3, codec="utf-8")
    rows = rows_of("--top", "5", "-U", "locale", path)
    assert [(row["text"], row["count"]) for row in rows] == [("naïve 日本", 5), ("plain", 3)]
    assert rows[0]["bytes"] == 5 * len("naïve 日本".encode())


def test_a_pipe(many: Path) -> None:
    of_file = rows_of("--top", "50", many, "--threads", 1)
    done = run("--top", "50", "--json", "-", input=many.read_bytes())
    assert (done.code, done.err) == (0, "")
    of_pipe = [json.loads(line) for line in done.out.splitlines()]
    for row in of_file + of_pipe:  # of a pipe holes are read as well
        del row["in"], row["share"]
    assert of_pipe == of_file


def test_several_encodings(tmp_path: Path) -> None:
    path = tmp_path / "both"
    path.write_bytes(b"some text\0" * 5 + b"\1\1" + ("some text\1" * 4).encode("utf-16-le"))
    (row,) = rows_of("--top", "5", "--exact", "-e", "s,l", "-n", "6", path)
    assert (row["count"], row["bytes"]) == (9, 5 * 9 + 4 * 18)


@pytest.mark.parametrize("options", [("--exact",), ()], ids=["exact", "alike"])
def test_long_strings(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Of which only the beginning is shown; some are longer than several pieces."""
    short, long, giant = "ab" * 64, "cd" * 20_000, "ef" * (5 << 20)
    texts = [short, long, giant, short, long, giant, "gh" * 64 + "i"]
    path = write(tmp_path / "long", *texts)
    rows = rows_of("--top", "10", *options, path)
    assert [(row["bytes"], row["count"]) for row in rows] == [
        (2 * len(giant), 2),
        (2 * len(long), 2),
        (2 * len(short), 2),
        (129, 1),
    ]
    assert [row["cut"] for row in rows] == [True, True, False, True]
    assert [row["text"] for row in rows] == [t[:128] for t in (giant, long, short, texts[-1])]
    assert rows == rows_of("--top", "10", *options, path, "--threads", 1)


@pytest.mark.parametrize("encoding", ["l", "B"])
def test_long_wide_strings(tmp_path: Path, encoding: str) -> None:
    texts = ["abcd" * 100_000, "x", "abcd" * 100_000, "x", "efgh" * 5000]
    path = write(tmp_path / "long", *texts, codec=CODECS[encoding])
    rows = rows_of("--top", "10", "-e", encoding, path)
    width = len("x".encode(CODECS[encoding]))
    assert [(row["bytes"], row["count"]) for row in rows] == [
        (800_000 * width, 2),
        (20_000 * width, 1),
    ]
    assert rows[0]["text"] == "abcd" * 32


# --- strings that are alike -------------------------------------------------------------

TEMPLATES = [
    (["user 123 x", "user 456 x", "user 7 x"], "user # x"),
    (["item0", "item99"], "item#"),
    (["007abc", "8abc"], "#abc"),
    (["1.5 of 20", "10.25 of 3"], "#.# of #"),
    (["deadbeef12 end", "0123456789 end", "DEADBEEF99 end"], "# end"),
    (["commit 0a1b2c3d", "commit ffffffff0"], "commit #"),
    (["face", "face"], "face"),
    (["deadbeefcafe", "deadbeefcafe"], "deadbeefcafe"),
    (["face12x", "face3x"], "face#x"),
    (["at 0x1f;", "at 0xDEAD;", "at 0x7fffdeadbeef;", "at 0X1;"], "at #;"),
    (["0xyz", "9xyz"], "#xyz"),
    (["size 0x", "size 5x"], "size #x"),
    (["123e4567-e89b-12d3-a456-426614174000", str(uuid.UUID(int=7))], "#"),
    (["id=ABCDEF12-e89b-12d3-a456-426614174000.", f"id={uuid.UUID(int=1 << 100)}."], "id=#."),
    (["12345678-1234", "22-33"], "#-#"),
    (["a 1b2", "a 3b44"], "a #b#"),
    (["12345678901234567890123 long", "1 long"], "# long"),
    (["\ttab 5", "\ttab 66"], "\ttab #"),
    (["x" * 60 + "1" + "y" * 60, "x" * 60 + "22" + "y" * 60], "x" * 60 + "#" + "y" * 60),
]


@pytest.mark.parametrize(("texts", "template"), TEMPLATES, ids=[t for _, t in TEMPLATES])
def test_numbers_do_not_tell_strings_apart(tmp_path: Path, texts: list[str], template: str) -> None:
    path = write(tmp_path / "texts", *texts)
    (row,) = rows_of("--top", "9", path)
    assert (row["text"], row["count"]) == (template, len(texts))
    assert row["bytes"] == sum(map(len, texts))
    assert int(row["address"], 16) == 0


def template_of(text: str) -> str:
    """As the documentation has it, by regular expressions."""
    number = re.compile(r"(?P<run>[0-9a-fA-F]{8,})|0[xX](?P<hex>[0-9a-fA-F]+)|[0-9]+", re.ASCII)
    uuids = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
    out, at = "", 0
    while at < len(text):
        starts = at == 0 or not re.match("[0-9a-fA-F]", text[at - 1]) or out.endswith("#")
        found = number.match(text, at)
        if found and found["run"] and starts and re.search("[0-9]", found["run"]):
            whole = uuids.match(text, at)
            at = whole.end() if whole and len(found["run"]) == 8 else found.end()
            out += "#"
        elif found and not found["run"] and text[at].isdigit():
            at, out = found.end(), out + "#"
        elif found and found["run"] and starts:
            at, out = found.end(), out + found["run"]
        else:
            at, out = at + 1, out + text[at]
    return out


def test_templates_of_random_texts(tmp_path: Path, rng: random.Random) -> None:
    parts = ("user ", "x", "12", "0", "7", "0x1f", "face", "deadbeef", "0123abcd", "-", " ", "zz")
    parts += (str(uuid.UUID(int=rng.getrandbits(128))), "é", "0x", "abcdef1")
    texts = ["".join(rng.choices(parts, k=rng.randrange(1, 8))) for _ in range(20_000)]
    texts = [text for text in texts if len(text) >= 4]
    path = write(tmp_path / "texts", *texts)
    expected = Counter(template_of(text)[:128] for text in texts)
    rows = rows_of("--top", MOST, "-e", "S", path)
    assert {row["text"]: row["count"] for row in rows} == expected


# --- places -----------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["label", "region"])
@pytest.mark.parametrize("options", [("--exact",), ()], ids=["exact", "alike"])
def test_parts_sum_up(by: str, options: tuple[str, ...], tmp_path: Path) -> None:
    with targets.start("awkward", tmp_path) as target:
        target.stop()
        whole = rows_of("--top", MOST, *options, "-n", "6", target.pid)
        parts = rows_of("--top", MOST, *options, "-n", "6", "--by", by, target.pid)
    assert whole
    assert {row["low_by_at_most"] for row in whole + parts} == {0}
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for row in parts:
        counts[row["text"]] += row["count"]
        sizes[row["text"]] += row["bytes"]
        if by == "label":
            assert row["in"][0] in {kind.value for kind in Kind}
        assert len(row["in"]) == 1
    assert counts == Counter({row["text"]: row["count"] for row in whole})
    assert sizes == Counter({row["text"]: row["bytes"] for row in whole})


_FILLED = """
import mmap, sys
kept = []
for count, more in ((1000, 0), (3000, mmap.PROT_EXEC)):  # other permissions keep them apart
    prot = mmap.PROT_READ | mmap.PROT_WRITE | more
    kept.append(mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot))
    for _ in range(count):
        kept[-1].write(b"planted in memory\\0")
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_process(tmp_path: Path) -> None:
    with child(sys.executable, "-c", _FILLED, ready=b"ready") as process:
        rows = rows_of("--top", MOST, process.pid)
        (row,) = (row for row in rows if row["text"] == "planted in memory")
        assert row["bytes"] == row["count"] * 17
        by_region = rows_of("--top", MOST, "--by", "region", process.pid)
        found = [row["count"] for row in by_region if row["text"] == "planted in memory"]
        assert any(1000 <= count < 1010 for count in found)  # and some of Python's own
        assert any(3000 <= count < 3010 for count in found)
        assert sum(found) == row["count"]
        lines = lines_of(process.pid, "--match", "^planted in memory$").count(b"\n")
        assert row["count"] == lines


def test_a_real_process(tmp_path: Path) -> None:
    with python(tmp_path) as running:
        rows = rows_of("--top", "200", running.pid)
        lines = lines_of(running.pid)
        node = next(row for row in rows if row["text"] == "node #")
        assert node["count"] == len(re.findall(rb"(?m)^node \d+$", lines))
        assert node["low_by_at_most"] == 0 or node["low_by_at_most"] < node["bytes"]


# --- bounds -----------------------------------------------------------------------------

_PEAK = """
import os, resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("options", "length"),
    [
        pytest.param(("--exact",), 24 << 20, id="exact"),
        pytest.param((), 24 << 20, id="alike"),
        pytest.param(("--exact",), 100 << 20, id="long-exact", marks=pytest.mark.long),
        pytest.param((), 100 << 20, id="long-alike", marks=pytest.mark.long),
    ],
)
def test_memory_is_bounded_and_what_matters_is_kept(
    tmp_path: Path, rng: random.Random, options: tuple[str, ...], length: int
) -> None:
    """More different strings than the table holds; one of them is there 200,000 times."""
    planted, count, parts = "planted among the many", 200_000, 20
    path = tmp_path / "distinct"
    with path.open("wb") as file:
        for _ in range(parts):
            noise = rng.randbytes(length // parts).translate(_LETTERS)
            step = len(noise) // (count // parts)
            cut = [noise[i * step : (i + 1) * step] for i in range(count // parts)]
            file.write((b"\0" + planted.encode() + b"\0").join([*cut, b""]))
    command = [*FASTDUMP, "strings", "--json", "--top", "5", *options, str(path)]
    done = subprocess.run([sys.executable, "-c", _PEAK, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr) << 10 < 300 << 20
    first = json.loads(done.stdout.splitlines()[0])
    assert first["text"] == planted
    size = count * len(planted)
    assert size - first["low_by_at_most"] <= first["bytes"] <= size
    assert 0 < first["low_by_at_most"] < size // 10


# Letters, and a NUL for each byte of 24, so that strings are some bytes long.
_LETTERS = bytes(
    0 if byte < 24 else ord("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[byte % 52])
    for byte in range(256)
)
