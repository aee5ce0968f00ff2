"""``fastdump strings`` on files and pipes, held against strings(1) of GNU binutils.

``run``, ``gnu`` and ``tokens`` serve the other tests of strings too. FASTDUMP_TEST_SEED repeats a
run or makes another.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import pty
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import targets
from fastdump._native import EVERY, PLAIN, Slice
from fastdump._strings import Form, Query, Scanner, kernels
from fastdump.cli import main, strings_output
from fastdump.errors import CorruptDump
from fastdump.hexdump import Hexdump
from fastdump.place import Stream
from fastdump.process import LiveProcess
from test_native import own_mapping, unmapped
from test_real import ending, program

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20241101"))
FASTDUMP = (sys.executable, "-m", "fastdump")
PAGE = os.sysconf("SC_PAGESIZE")
HEAD, CHUNK, PIECE, STREAM = 64 << 10, 256 << 10, 4 << 20, 1 << 20
ENCODINGS = "sSlbLB"
CODECS = {"s": "ascii", "S": "latin-1", "l": "utf-16-le", "b": "utf-16-be", "L": "utf-32-le"}
CODECS["B"] = "utf-32-be"
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100)
SEPARATOR = "\x02\n"  # in no text


# --- running ----------------------------------------------------------------------------


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test and case."""
    print(f"FASTDUMP_TEST_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


class Outcome(NamedTuple):
    """How a program ended."""

    code: int
    out: bytes
    err: str


def execute(command: Sequence[object], **options: Any) -> Outcome:
    options.setdefault("stdout", subprocess.PIPE)
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run(
        [os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in command],
        stderr=subprocess.PIPE,
        **options,
    )
    return Outcome(done.returncode, done.stdout, done.stderr.decode())


def run(*args: object, **options: Any) -> Outcome:
    """``fastdump strings``; never a traceback."""
    done = execute([*FASTDUMP, "strings", *args], **options)
    assert "Traceback" not in done.err, done.err
    assert "Exception ignored" not in done.err, done.err
    return done


def lines_of(*args: object, **options: Any) -> bytes:
    """What ``fastdump strings`` prints, and it ends well."""
    done = run(*args, **options)
    assert (done.code, done.err) == (0, "")
    return done.out


def gnu(*args: object, **options: Any) -> bytes:
    """What strings(1) prints."""
    done = execute([program("strings"), "-a", *args], **options)
    assert (done.code, done.err) == (0, "")
    return done.out


def same(ours: bytes, theirs: bytes) -> None:
    """Equal; where not, the first difference is shown, not some megabytes."""
    if ours == theirs:
        return
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    shown = slice(max(at - 80, 0), at + 80)
    pytest.fail(f"byte {at} of {len(ours)} and {len(theirs)}: {ours[shown]!r}, {theirs[shown]!r}")


def check_one_line(outcome: Outcome, code: int, *words: str) -> None:
    """One line that has *words*, with a hint or without."""
    message, *rest = outcome.err.splitlines()
    assert (outcome.code, outcome.out or b"") == (code, b""), outcome
    assert message.startswith("fastdump: "), outcome.err
    assert all(word in message for word in words), outcome.err
    assert all(line.startswith("  hint: ") for line in rest), outcome.err
    assert len(rest) <= 1, outcome.err


# --- data -------------------------------------------------------------------------------


def tokens(rng: random.Random, count: int) -> bytes:
    """Bytes that are hard to tell apart: text in all encodings, its halves, and what ends it."""
    found = []
    for kind in rng.choices(range(9), (6, 6, 3, 2, 4, 2, 3, 1, 2), k=count):
        letters = "".join(rng.choices("abcXYZ09 ~\t", k=rng.choice((1, 1, 2, 3, 4, 5, 9))))
        if kind == 0:
            found.append(letters.encode())
        elif kind == 1:
            found.append(letters.encode(CODECS[rng.choice("lbLB")]))
        elif kind == 2:
            found.append(bytes(rng.choice((1, 1, 2, 3, 4, 5))))
        elif kind == 3:
            found.append(rng.choice((b"\x7f", b"\n", b"\r", b"\v", b"\f", b"\x1f", b"\b", b"\xff")))
        elif kind == 4:
            found.append(bytes([rng.randrange(0x80, 0x100)]) * rng.choice((1, 1, 2, 5)))
        elif kind == 5:
            found.append(rng.randbytes(rng.choice((1, 2, 3, 8))))
        elif kind == 6:
            part = letters.encode(CODECS[rng.choice("lbLB")])
            found.append(part[rng.randrange(4) : len(part) - rng.randrange(4)])
        elif kind == 7:
            found.append(rng.choice((b"x", b"\0", b"y\0", b"\xc3\xa9")) * rng.randrange(1, 80))
        else:
            found.append(rng.choice(("é", "€", "日本", "🐍", "\u0080", "\u07ff")).encode())
    return b"".join(found)


def text(rng: random.Random, length: int, encoding: str) -> bytes:
    """A string of *length* characters, without a repetition that a wrong offset would hide."""
    letters = "abcdefghijklmnopqrstuvwxyz 0123456789"
    unit = "".join(rng.choices(letters, k=min(length, 1009)))
    return (unit * (length // len(unit) + 1))[:length].encode(CODECS[encoding])


def put(data: bytearray, at: int, part: bytes) -> None:
    if at >= 0:
        data[at : at + len(part)] = part[: len(data) - at]


def crossing(rng: random.Random, size: int) -> bytearray:
    """A string over each page boundary; longer ones over those of chunks and pieces."""
    data = bytearray(b"\1") * size
    for at in range(PAGE, size, PAGE):
        encoding = rng.choice(ENCODINGS)
        length = rng.choice((1, 3, 4, 5, 8, 20, 64, 100, rng.randrange(1, 700)))
        if at % CHUNK == 0 and rng.random() < 0.5:
            length = rng.choice((5000, HEAD - 1, HEAD, HEAD + 1, rng.randrange(1, HEAD * 2)))
        part = text(rng, length, encoding)
        back = rng.choice((0, 1, 2, 3, 4, 5, len(part), len(part) // 2, rng.randrange(len(part))))
        put(data, at - min(back, len(part)), part)
    return data


class Giant(NamedTuple):
    """A long string that :func:`giants` has put somewhere."""

    at: int
    text: bytes
    encoding: str


def giants(rng: random.Random) -> tuple[bytes, list[Giant]]:
    """Strings that are longer than a chunk, and than several pieces, at odd places."""
    parts, placed, at = [b"short one\1"], [], 10
    for encoding, length in (("s", 10 << 20), ("l", 3 << 20), ("b", 200_000), ("L", 300_000)):
        part = b"\1" * rng.randrange(1, 9) + b"in between\1" + b"\1" * rng.randrange(PAGE)
        parts.append(part)
        at += len(part)
        part = text(rng, length + rng.randrange(PAGE), encoding)
        placed.append(Giant(at, part, encoding))
        parts.append(part)
        at += len(part)
    parts.append(b"\1the last\1" + "wide".encode("utf-32-be") + text(rng, 70_000, "B"))
    return b"".join(parts), placed


# --- as strings(1) ----------------------------------------------------------------------

OPTIONS: list[tuple[str, ...]] = [
    (),
    *(("-n", str(n)) for n in (1, 2, 4, 8, 100)),
    *(("-t", radix) for radix in "xdo"),
    ("-o",),
    *(("-e", encoding) for encoding in ENCODINGS),
    *(("-n", "2", "-t", "x", "-e", encoding) for encoding in ENCODINGS),
    ("-w",),
    ("-w", "-t", "x", "-e", "l"),
    ("-s", "|"),
    ("-s", "--\n--"),
    ("-s", ""),
    ("-f",),
    ("-f", "-t", "d", "-s", "%"),
    ("-8",),
    ("-n", "010"),
    ("-n", "0x10"),
    ("--bytes=6", "--radix=o", "--encoding=S"),
    ("-wf", "-tx", "-n3"),
    ("-U", "invalid"),
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens, and a program with all that is in one."""
    rng = random.Random(SEED)
    path = tmp_path_factory.mktemp("strings") / "mixed"
    path.write_bytes(
        b"".join(tokens(rng, 40) + rng.randbytes(50) for _ in range(400))
        + Path(program("strings")).read_bytes()
        + b"the end"
    )
    return path


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_a_file_gives_what_gnu_strings_prints(mixed: Path, options: tuple[str, ...]) -> None:
    theirs = gnu(*options, mixed.name, cwd=mixed.parent)
    assert theirs or "100" in options
    same(lines_of(*options, mixed.name, cwd=mixed.parent), theirs)


def test_several_files_and_names_like_numbers(mixed: Path, tmp_path: Path) -> None:
    for name in ("12345", "with space", "- odd", "new\nline"):
        (tmp_path / name).write_bytes(b"text of " + name.encode().replace(b"\n", b"_"))
    names = ["./12345", "with space", "./- odd", "new\nline", mixed]
    same(lines_of("-f", *names, cwd=tmp_path), gnu("-f", *names, cwd=tmp_path))


BATCHES = [
    *(pytest.param(i, 100, id=f"sample{i}") for i in range(8)),
    *(pytest.param(8 + i, 5000, id=f"long{i}", marks=pytest.mark.long) for i in range(40)),
]


@pytest.mark.parametrize(("case", "count"), BATCHES)
def test_adversarial_files(tmp_path: Path, rng: random.Random, case: int, count: int) -> None:
    """Many small files: GNU strings is run once, and our scanner in this process."""
    for _ in range(max(1, count // 500)):
        _check_batch(tmp_path, rng, min(count, 500))


def _check_batch(folder: Path, rng: random.Random, count: int) -> None:
    encoding, length = rng.choice(ENCODINGS), rng.choice(LENGTHS)
    radix, whitespace = rng.choice(((), ("x", 16), ("d", 10), ("o", 8))), rng.random() < 0.3
    kernel = rng.choice(kernels())
    print(encoding, length, radix, whitespace, kernel)
    data = {}
    for number in range(count):
        size = rng.choice((0, 1, 3, 10, 30, 30, 100))
        data[f"f{number}"] = tokens(rng, size) + (b"" if rng.random() < 0.9 else bytes(5000))
    for name, content in data.items():
        (folder / name).write_bytes(content)
    words = ["-n", length, "-e", encoding, "-f", "-s", SEPARATOR]
    words += ["-t", radix[0]] if radix else []
    words += ["-w"] if whitespace else []
    theirs = gnu(*words, *data, cwd=folder).split(SEPARATOR.encode())
    query = Query(length, (encoding,), whitespace)
    form = Form(int(radix[1]) if radix else 0, separator=SEPARATOR.encode())
    scanner = Scanner(query, form, kernel, chunk_size=rng.choice((4096, CHUNK)))
    ours = []
    for name, content in data.items():
        out = b"".join(bytes(part.lines) for part in scanner.feed(content, 0, True))
        ours += [name.encode() + b": " + line for line in out.split(SEPARATOR.encode())[:-1]]
    for mine, gnus in zip([*ours, b""], theirs, strict=False):
        assert mine == gnus, data[(mine or gnus).split(b":")[0].decode()]
    assert len(ours) + 1 == len(theirs)


WIDE = {"l": "utf-16-le", "b": "utf-16-be", "L": "utf-32-le", "B": "utf-32-be"}


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("of_file", [False, True])
def test_what_cannot_be_read_ends_a_string(
    tmp_path: Path, kernel: str, encoding: str, of_file: bool
) -> None:
    """No byte of it is made up: a zero would be half of a wide character."""
    memory, address = own_mapping(32)
    text = "abcdefgh".encode(WIDE.get(encoding, "ascii"))
    for page in (3, 17):
        for at in (page * PAGE - len(text) + 1, (page + 1) * PAGE - 1):
            memory[at : at + len(text)] = text
    wanted = []
    for first, end in ((0, 3), (4, 17), (18, 32)):
        part = tmp_path / "part"
        part.write_bytes(memory[first * PAGE : end * PAGE])
        for line in gnu("-a", "-t", "d", "-n", 2, "-e", encoding, part).splitlines():
            offset, found = line.split()
            wanted.append((address + first * PAGE + int(offset), found))
    with LiveProcess(os.getpid()) as process, open("/proc/self/mem", "rb") as file:
        scanner = Scanner(Query(2, (encoding,)), Form(10), kernel, chunk_size=16 * PAGE)
        whole = Slice(address, 32 * PAGE, address, EVERY)
        if of_file:
            whole = whole._replace(flags=PLAIN, file=file.fileno(), file_offset=address)
        with unmapped(address + 3 * PAGE), unmapped(address + 17 * PAGE):
            parts = scanner.scan(process.memory, [[whole]], 0, 2**64 - 1)
            lines = b"".join(bytes(part.lines) for part in parts).splitlines()
    assert [(int(at), found) for at, found in map(bytes.split, lines)] == wanted
    assert [(gap.start - address) // PAGE for gap in scanner.gaps] == [3, 17]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_strings_over_pages_chunks_and_pieces(
    tmp_path: Path, rng: random.Random, encoding: str
) -> None:
    path = tmp_path / "crossing"
    path.write_bytes(crossing(rng, 2 * PIECE + rng.randrange(2 * PAGE)))
    for length in (1, 4, 100):
        words = ("-t", "x", "-n", length, "-e", encoding, path)
        same(lines_of(*words, "--threads", 2), gnu(*words))


@pytest.mark.long
@pytest.mark.parametrize("case", range(20))
def test_strings_over_boundaries_again(tmp_path: Path, rng: random.Random, case: int) -> None:
    path = tmp_path / "crossing"
    path.write_bytes(crossing(rng, 3 * PIECE + rng.randrange(PIECE)))
    for encoding in ENCODINGS:
        words = ("-t", "x", "-n", rng.choice(LENGTHS), "-e", encoding, path)
        theirs = gnu(*words)
        for threads in (1, 3):
            same(lines_of(*words, "--threads", threads), theirs)


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Giant]]:
    data, placed = giants(random.Random(SEED))
    path = tmp_path_factory.mktemp("giants") / "huge"
    path.write_bytes(data)
    return path, placed


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_giants(huge: tuple[Path, list[Giant]], encoding: str) -> None:
    path, _ = huge
    theirs = gnu("-t", "x", "-e", encoding, path)
    for threads in (1, 3):
        same(lines_of("-t", "x", "-e", encoding, path, "--threads", threads), theirs)
    same(lines_of("-t", "x", "-e", encoding, "-", input=path.read_bytes()), theirs)


def test_giants_as_records(huge: tuple[Path, list[Giant]]) -> None:
    path, placed = huge
    found = [json.loads(line) for line in lines_of("--json", "-n", 70_000, "-e", "s,l,b,L", path)
             .splitlines()]  # fmt: skip
    by_place = {(int(f["address"], 16), f["encoding"]): f for f in found}
    for giant in placed:
        record = by_place[giant.at, giant.encoding]
        assert record["length"] == len(giant.text)
        same(record["text"].encode(), giant.text.decode(CODECS[giant.encoding]).encode())
    for options in (("--unique",), ("--contains", "i"), ("--match", "^[a-z0-9 ]+$")):
        same(lines_of("-n", 200, *options, path), gnu("-n", 200, path))
    assert lines_of("-c", path) == b"%d\n" % gnu(path).count(b"\n")


# --- holes ------------------------------------------------------------------------------


def sparse(path: Path, size: int, parts: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for at, data in parts.items():
            file.seek(at)
            file.write(data)
    return path


@pytest.mark.parametrize("in_memory", [False, True], ids=["disk", "tmpfs"])
def test_a_file_with_holes(in_memory: bool, tmp_path: Path, rng: random.Random) -> None:
    size = 64 << 20
    parts = {rng.randrange(0, size - 10_000): tokens(rng, 60) for _ in range(30)}
    parts |= {0: b"the first", size - 8: b"the last"}
    fd = os.memfd_create("sparse")
    path = Path(f"/proc/{os.getpid()}/fd/{fd}") if in_memory else tmp_path / "sparse"
    try:
        same(lines_of("-t", "x", sparse(path, size, parts)), gnu("-t", "x", path))
        whole = sparse(path, PAGE + 8, {0: tokens(rng, PAGE), PAGE: b"the last"})
        same(lines_of("-t", "x", whole), gnu("-t", "x", path))
    finally:
        os.close(fd)


def test_large_holes_are_not_read(tmp_path: Path, rng: random.Random) -> None:
    size = 1 << 40
    places = sorted(rng.sample(range(0, size, PAGE), 5))
    path = sparse(tmp_path / "sparse", size, {at + 5: b"planted" for at in places})
    expected = b"".join(b"%7d planted\n" % (at + 5) for at in places)
    assert lines_of("-t", "d", path) == expected
    assert int(lines_of("--count", path)) == len(places)


@pytest.mark.parametrize("encoding", ["l", "b", "L", "B"])
def test_wide_characters_whose_zeros_lie_in_a_hole(tmp_path: Path, encoding: str) -> None:
    """In big-endian encodings a character begins in the hole before, in the others one ends in it.

    Some of the places are where pieces end.
    """
    part = "abcdefg".encode(CODECS[encoding])
    lead = len(part) - len(part.lstrip(b"\0"))
    tail = len(part) - len(part.rstrip(b"\0"))
    body = part.strip(b"\0")
    page = b"\1" * (PAGE - len(body))
    piece = b"\1" * (PIECE - PAGE)
    first = body + page
    last = page + body
    files = {
        "before": (16 * PAGE, {4 * PAGE: first}),
        "behind": (16 * PAGE, {4 * PAGE: last}),
        "between": (16 * PAGE, {4 * PAGE: last, 6 * PAGE: first}),
        "end": (5 * PAGE + tail, {4 * PAGE: last}),
        "piece ends": (3 * PIECE, {0: piece + last, PIECE + 16 * PAGE: first + piece}),
        "piece begins": (4 * PIECE, {PIECE: piece + last, 3 * PIECE: first + piece}),
        "piece and end": (PIECE + tail, {0: piece + last}),
    }
    assert lead or tail
    wrong = []
    for name, (size, parts) in files.items():
        path = sparse(tmp_path / name, size, parts)
        words = ("-t", "x", "-e", encoding, path)
        ours, theirs = lines_of(*words), gnu(*words)
        if ours != theirs:
            wrong.append((name, ours, theirs))
    assert not wrong


# --- what else a source can be ----------------------------------------------------------


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    assert run(path) == (0, b"", "")
    assert run("--json", path) == (0, b"", "")
    assert run("--count", path) == (0, b"0\n", "")
    assert run("-", input=b"") == (0, b"", "")


def test_small_files(tmp_path: Path) -> None:
    path = tmp_path / "small"
    for content in (b"a", b"abc", b"abcd", b"a\0b\0c\0d\0", b"a\0b\0c\0d", b"\0a\0b\0c\0d", b"\0"):
        path.write_bytes(content)
        for encoding in ENCODINGS:
            for length in (1, 4):
                words = ("-t", "x", "-n", length, "-e", encoding)
                data = b"".join(bytes(f.lines) for f in _scan(content, length, encoding))
                assert data == gnu(*words, path), (content, words)
        assert lines_of(path) == gnu(path)


def _scan(content: bytes, length: int, encoding: str) -> Iterator[Any]:
    return Scanner(Query(length, (encoding,)), Form(16)).feed(content, 0, True)


@pytest.mark.parametrize("name", ["version", "PID/environ", "PID/cmdline", "PID/maps"])
def test_files_of_proc_say_that_they_are_empty(name: str, tmp_path: Path) -> None:
    with targets.start("exiter", PAGE) as target:
        target.stop()
        path = Path("/proc") / name.replace("PID", str(target.pid))
        assert path.stat().st_size == 0
        (tmp_path / "copy").write_bytes(path.read_bytes())
        same(lines_of("-t", "x", path), gnu("-t", "x", tmp_path / "copy"))
        assert lines_of(path)


def test_files_of_sys_say_that_they_are_a_page() -> None:
    path = Path("/sys/devices/system/cpu/online")
    assert path.stat().st_size > len(path.read_bytes())
    same(lines_of("-n", 1, path), gnu("-n", 1, path))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_pipe(tmp_path: Path, rng: random.Random, encoding: str) -> None:
    data = crossing(rng, 2 * STREAM + rng.randrange(2 * PAGE))
    for at in (STREAM, 2 * STREAM):
        put(data, at - rng.randrange(1000), text(rng, 1500, encoding))
    path = tmp_path / "data"
    path.write_bytes(data)
    for words in (("-t", "x", "-n", "1", "-e", encoding), ("-e", encoding, "-w")):
        same(lines_of(*words, "-", input=data), gnu(*words, path))


def test_a_pipe_that_brings_some_bytes_at_a_time(rng: random.Random, tmp_path: Path) -> None:
    data = tokens(rng, 3000)
    (tmp_path / "data").write_bytes(data)
    command = (*FASTDUMP, "strings", "-t", "x", "-")
    with ending(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        at = 0
        while at < len(data):
            step = rng.choice((1, 7, 64, 5000))
            process.stdin.write(data[at : at + step])
            process.stdin.flush()
            at += step
        process.stdin.close()
        same(process.stdout.read(), gnu("-t", "x", tmp_path / "data"))


class _Late(io.FileIO):
    """A pipe that does not block, into which each part is written once it was found empty."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        reader, self._writer = os.pipe()
        os.set_blocking(reader, False)
        super().__init__(reader)
        self._parts = list(parts)

    def readinto(self, buffer: Any) -> Any:
        count = super().readinto(buffer)
        if count is None:
            if self._parts:
                os.write(self._writer, self._parts.pop(0))
            else:
                os.close(self._writer)
        return count


def test_a_pipe_that_does_not_block_is_read_to_its_end() -> None:
    with _Late([b"text, a", b"nd more\0", b"the end"]) as pipe:
        found = Stream("pipe", STREAM, pipe).found(Scanner(Query(4, ("s",)), Form()))
        assert b"".join(bytes(each.lines) for each in found) == b"text, and more\nthe end\n"


def test_what_comes_before_an_error_is_searched() -> None:
    class Broken(io.RawIOBase):
        parts = iter([b"text\0and ", b"more"])

        def readinto(self, buffer: Any) -> int:
            part = next(self.parts, b"")
            if not part:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            buffer[: len(part)] = part
            return len(part)

    found = Stream("disk", STREAM, Broken()).found(Scanner(Query(4, ("s",)), Form()))
    assert bytes(next(found).lines) == b"text\nand more\n"
    with pytest.raises(CorruptDump, match="cannot read disk: Input/output error"):
        next(found)


@pytest.mark.parametrize("start", [0, 10])
def test_standard_input_is_read_from_where_it_is(tmp_path: Path, start: int) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"the first\0the second\0")
    found = []
    for command in ([*FASTDUMP, "strings", "-"], [program("strings"), "-a"]):
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            found.append(execute(command, stdin=file))
    assert found[0] == found[1]


def test_a_string_too_long_for_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"\1" + b"x" * (67 << 20) + b"\1and more")
    done = run("-", input=path.read_bytes())
    assert (done.code, done.out[-10:]) == (3, b"\nand more\n")
    assert (64 << 20) <= done.out.index(b"\n") < (67 << 20)
    assert "string too long for a pipe" in done.err
    assert lines_of("-t", "x", path) == b"      1 " + b"x" * (67 << 20) + b"\n4300002 and more\n"
    record = json.loads(run("--json", "-", input=path.read_bytes()).out.splitlines()[0])
    assert (record["address"], record["length"]) == ("0x1", 67 << 20)
    assert len(record["text"]) == 64 << 20


# --- threads, and an output that goes away ----------------------------------------------


@pytest.mark.parametrize("form", [("-t", "x"), ("--json",), ("--contains", "a"), ("-e", "s,l")])
def test_threads_make_no_difference(
    tmp_path: Path, rng: random.Random, form: tuple[str, ...]
) -> None:
    path = tmp_path / "data"
    path.write_bytes(crossing(rng, 5 * PIECE + 1234))
    one = lines_of(*form, path, "--threads", 1)
    for threads in (2, 3, 5):
        same(lines_of(*form, path, "--threads", threads), one)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines, more than any pipe holds."""
    path = tmp_path_factory.mktemp("large") / "large"
    path.write_bytes(b"".join(b"line number %d\n" % i for i in range(1_000_000)))
    return path


@pytest.mark.parametrize(
    "form", [(), ("-t", "x"), ("--json",), ("--match", "number"), ("--context", "1")]
)
def test_a_reader_that_goes_away(large: Path, form: tuple[str, ...]) -> None:
    command = (*FASTDUMP, "strings", *form, large)
    with ending(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert b"line number 0" in process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate()
    assert (process.returncode, err) == (7, b"")


@pytest.mark.parametrize("form", [(), ("--json",), ("--count",), ("--top", "3"), ("--match", "9")])
def test_a_full_device(large: Path, form: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = run(*form, large, stdout=full)
    check_one_line(done, 7, "cannot write standard output", "No space left")


@pytest.mark.parametrize("form", [(), ("--json",), ("--count",), ("--top", "3")])
def test_a_closed_output(large: Path, form: tuple[str, ...]) -> None:
    done = execute(["sh", "-c", 'exec "$@" >&-', "sh", *FASTDUMP, "strings", *form, large])
    check_one_line(done, 7, "cannot write standard output")


def test_a_terminal_gets_no_control_codes(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"eight \x9b1m bits\0" + "wide \u009b1m é".encode() + b"\0")
    assert b"\x9b" in lines_of("-e", "S", path)
    assert _on_a_terminal("-e", "S", path) == [b"eight ?1m bits", b"wide \xc2?1m \xc3\xa9"]
    assert _on_a_terminal("-U", "locale", path)[-1] == "wide ?1m é".encode()
    red = b"wide \x1b[31;47m\\u009b\x1b[0m1m \x1b[31;47m\\u00e9\x1b[0m"
    assert _on_a_terminal("-U", "highlight", path)[-1] == red


def test_a_terminal_shows_text_where_it_is(tmp_path: Path) -> None:
    """No mark of another writing direction, and no way back over what was written."""
    path = tmp_path / "data"
    path.write_bytes("left \u202e\u2066\u200f\u061c é\0back\r\v\f \0".encode())
    assert lines_of("-w", path).endswith(b"back\r\v\f \n")
    assert _on_a_terminal("-U", "locale", path)[0] == "left ???? é".encode()
    assert _on_a_terminal("-w", path)[-1] == b"back??? "


def _on_a_terminal(*args: object) -> list[bytes]:
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        with open(theirs, "wb") as output:
            done = run(*args, stdout=output)
        assert (done.code, done.err) == (0, "")
        content = b""
        with contextlib.suppress(OSError):  # EIO at its end
            while part := terminal.read(4096):
                content += part
    return content.replace(b"\r\n", b"\n").splitlines()


# --- errors -----------------------------------------------------------------------------

NO_SENSE: list[tuple[str, ...]] = [
    ("-n", "0"),
    ("-n", "00"),
    ("-n", "4k"),
    ("-n", "08"),
    ("-n", "0x"),
    ("-n", "-5"),
    ("-n", "99999999999"),
    ("-0",),
    ("-e", "x"),
    ("-e", "s,x"),
    ("-e", ""),
    ("-e", "U"),
    ("-t", "b"),
    ("-U", "utf8"),
    ("--threads", "0"),
    ("--top", "0"),
    ("--by", "label"),
    ("--exact",),
    ("--context", "-1"),
    ("-i",),
    ("--top", "3", "--count"),
    ("--json", "--count"),
    ("--json", "--context", "5"),
    ("--top", "3", "--match", "x"),
    ("--count", "--contains", "x"),
    ("--match", "("),
    ("--match", "[a"),
    ("--match", "(?<=a+)b"),
    ("--match", "a{4294967295}"),
]


@pytest.mark.parametrize("options", NO_SENSE, ids=" ".join)
def test_options_that_make_no_sense(mixed: Path, options: tuple[str, ...]) -> None:
    done = run(*options, mixed)
    assert (done.code, done.out) == (2, b"")
    assert done.err


@pytest.mark.parametrize("number", ["1_0", "0o10", "0_7", "٤"])
def test_numbers_that_strtoul_does_not_take(mixed: Path, number: str) -> None:
    done = run("-n", number, mixed)
    assert (done.code, done.out) == (2, b"")


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    check_one_line(run(tmp_path / "missing"), 2, "cannot read", "No such file")
    check_one_line(run(tmp_path), 2, "is a folder")
    check_one_line(run("--context", "3", "-", input=b"text"), 2, "a pipe cannot be read again")
    check_one_line(run("/proc/self/mem"), 6, "cannot read /proc/self/mem", "Input/output error")
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        check_one_line(run(stdin=memory), 6, "cannot read {standard input}", "Input/output error")
    ours, theirs = pty.openpty()
    with open(ours, "rb"), open(theirs, "rb") as terminal:
        check_one_line(run(stdin=terminal), 2, "no SOURCE")


def test_without_a_source_it_reads_standard_input() -> None:
    assert lines_of("-t", "d", input=b"text\0and more") == b"      0 text\n      5 and more\n"
    assert lines_of() == b""


def test_the_name_of_standard_input(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"text\0and more")
    with path.open("rb") as file:
        named = gnu("-f", stdin=file)
        file.seek(0)
        assert lines_of("-f", stdin=file) == named
    assert lines_of("-f", "-", input=path.read_bytes()) == named


def test_stats_go_to_standard_error(mixed: Path) -> None:
    done = run("--stats", mixed)
    assert (done.code, done.out) == (0, gnu(mixed))
    (line,) = done.err.splitlines()
    count = gnu(mixed).count(b"\n")
    assert f"{count:,} strings" in line
    assert kernels()[0] in line


def test_one_of_several_sources_fails(mixed: Path, tmp_path: Path) -> None:
    done = run(mixed, tmp_path / "missing", mixed)
    assert done.code == 2
    assert done.out == 2 * gnu(mixed)
    assert "No such file" in done.err.splitlines()[0]


# --- several encodings ------------------------------------------------------------------


@pytest.mark.parametrize("names", ["s,l", "l,b", "s,l,b,L,B", "b,s", "S,L", "s,S"])
def test_several_encodings_in_one_pass(tmp_path: Path, rng: random.Random, names: str) -> None:
    path = tmp_path / "data"
    path.write_bytes(crossing(rng, 3 * CHUNK + 999) + b"\1" + tokens(rng, 10_000))
    for length in (1, 4):
        together = lines_of("-t", "d", "-n", length, "-e", names, path).splitlines()
        single = [lines_of("-t", "d", "-n", length, "-e", name, path) for name in names.split(",")]
        assert Counter(together) == Counter(line for out in single for line in out.splitlines())
        apart = ["-e" + name for name in names.split(",")]
        assert lines_of("-t", "d", "-n", length, *apart, path).splitlines() == together


@pytest.mark.parametrize("names", ["s,l", "S,L", "s,b"])
def test_addresses_of_several_encodings_ascend(
    tmp_path: Path, rng: random.Random, names: str
) -> None:
    path = tmp_path / "data"
    path.write_bytes(crossing(rng, PIECE + 999) + b"\1" + tokens(rng, 20_000))
    found = [int(line.split()[0]) for line in lines_of("-td", "-e", names, path).splitlines()]
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--contains", "-12"), b"an abc-12\n"),
        (("--match", "-12"), b"an abc-12\n"),
        (("-s", "-8"), b"an abc-12-8abc-n12 and more-8"),
        (("-8", "-ws", "-8"), b"an abc-12-8abc-n12 and more-8"),
        (("-ws", "--", "-12"), b"abc-n12 and more--"),
        (("-tx", "-12"), b"      a abc-n12 and more\n"),
        (("--match=1", "-12"), b"abc-n12 and more\n"),
    ],
)
def test_a_value_that_looks_like_a_length(
    tmp_path: Path, args: tuple[str, ...], expected: bytes
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"an abc-12\0abc-n12 and more\0")
    assert lines_of(*args, path) == expected


# --- UTF-8 ------------------------------------------------------------------------------

_UTF8 = (
    rb"(?:[ -~\t]|[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xff][\x80-\xbf]{3}){%d,}"
)


def utf8_tokens(rng: random.Random, count: int) -> bytes:
    """Characters of each length, cut off ones, and ASCII."""
    found = []
    for _ in range(count):
        kind = rng.randrange(8)
        part = rng.choice(("é", "ÿ", "€", "日", "�", "🐍", "𐀀", "\u0080", "\u07ff")).encode()
        if kind < 3:
            found.append("".join(rng.choices("abc 019\t", k=rng.randrange(1, 6))).encode())
        elif kind < 6:
            found.append(part)
        elif kind == 6:
            found.append(part[: rng.randrange(len(part))])
        else:
            found.append(rng.choice((b"\x80", b"\xff", b"\xc0", b"\n", b"\0", b"\xf8\x88\x80\x80")))
    return b"".join(found)


@pytest.mark.parametrize("length", [1, 2, 4, 8, 70])
def test_utf8_as_it_is(tmp_path: Path, rng: random.Random, length: int) -> None:
    data = utf8_tokens(rng, 60_000) + "é€日🐍".encode() * 20_000
    path = tmp_path / "data"
    path.write_bytes(data)
    expected = b"".join(
        b"%7x %s\n" % (found.start(), found.group()) for found in re.finditer(_UTF8 % length, data)
    )
    same(lines_of("-U", "locale", "-t", "x", "-n", length, path), expected)
    same(lines_of("-U", "l", "-t", "x", "-n", length, "-", input=data), expected)


@pytest.mark.parametrize("length", [1, 4])
def test_utf8_in_hexadecimal(tmp_path: Path, rng: random.Random, length: int) -> None:
    """Addresses of GNU strings are wrong behind an invalid sequence: they are not compared."""
    path = tmp_path / "data"
    path.write_bytes(utf8_tokens(rng, 20_000))
    same(lines_of("-U", "hex", "-n", length, path), gnu("-U", "hex", "-n", length, path))
    same(lines_of("-U", "x", "-n", length, path), gnu("-U", "x", "-n", length, path))


def test_utf8_escaped(tmp_path: Path, rng: random.Random) -> None:
    """GNU strings 2.40 shows characters of 4 bytes wrong: they are told apart."""
    path = tmp_path / "data"
    path.write_bytes(re.sub(rb"[\xf0-\xff]", b"", utf8_tokens(rng, 20_000)))
    same(lines_of("-U", "escape", path), gnu("-U", "escape", path))
    same(lines_of("-U", "highlight", path), gnu("-U", "escape", path))
    path.write_bytes("snake 🐍\0".encode())
    assert lines_of("-U", "escape", path) == b"snake \\u01f40d\n"


# --- filters ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines that patterns tell apart, many of them more than once, over several pieces."""
    rng = random.Random(SEED)
    letters = ("foo", "Foo", "bar", "abc", "9", "42", " ", "_", "-", "x", "error", "ERROR", "\t")
    found = []
    for _ in range(25_000):
        found.append("".join(rng.choices(letters, k=rng.randrange(1, 7))).encode())
        found.append(rng.choice((b"\0", b"\n", b"\1\2")))
    path = tmp_path_factory.mktemp("words") / "words"
    path.write_bytes(b"".join(found) + b"\1" * PIECE + b"".join(found[:1000]))
    return path


FORMS: list[tuple[str, ...]] = [(), ("-t", "x"), ("-f",), ("-f", "-t", "d"), ("-s", "|\n")]
PATTERNS = [
    "foo",
    "fo+.9",
    "^foo",
    "9$",
    "^foo$|^abc 9",
    r"\bfoo\b",
    r"\b42",
    r"\Bfoo",
    "(?<=foo)bar",
    "(?<![a-z])bar(?!9)",
    "[^a-z ]{3}",
    "(?i)error",
    r"\Aabc",
    r"abc\Z",
    "x*",
    r"(foo)\1",
    r"\s{2}",
    ".{12,}",
    "(?s:foo.bar)",
    "[^foo]$",
    r"\d+ *foo",
]


gnu_of_words = functools.cache(gnu)  # that file stays as it is


def _filtered(path: Path, form: Sequence[str], keep: Any) -> bytes:
    """The lines whose texts *keep* wants, in plain Python."""
    separator = form[form.index("-s") + 1].encode() if "-s" in form else b"\n"
    lines = gnu_of_words(*form, path).split(separator)[:-1]
    only_text = ("-s", separator.decode()) if "-s" in form else ()
    texts = gnu_of_words(*only_text, path).split(separator)[:-1]
    kept = [line + separator for line, t in zip(lines, texts, strict=True) if keep(t)]
    assert kept
    return b"".join(kept)


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_contains(words: Path, form: tuple[str, ...]) -> None:
    for literal in (b"9 f", b"o"):
        expected = _filtered(words, form, lambda t: literal in t)  # noqa: B023
        same(lines_of(*form, "--contains", literal.decode(), words), expected)
    expected = _filtered(words, form, lambda t: b"errorfoo" in t.lower())
    same(lines_of(*form, "--contains", "eRRorfOO", "-i", words), expected)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_match(words: Path, pattern: str) -> None:
    regex = re.compile(pattern.encode())
    form = FORMS[PATTERNS.index(pattern) % len(FORMS)]
    same(lines_of(*form, "--match", pattern, words), _filtered(words, form, regex.search))


@pytest.mark.parametrize("pattern", ["ERROR *foo", "^Foo", r"\bfoo"])
def test_match_of_any_case(words: Path, pattern: str) -> None:
    regex = re.compile(pattern.encode(), re.IGNORECASE)
    for form in (FORMS[1], FORMS[4]):
        same(lines_of(*form, "--match", pattern, "-i", words), _filtered(words, form, regex.search))


def test_match_and_contains(words: Path) -> None:
    regex = re.compile(rb"\d+ ?foo")
    expected = _filtered(words, ("-t", "x"), lambda t: regex.search(t) and b"bar" in t)
    same(lines_of("-tx", "--match", r"\d+ ?foo", "--contains", "bar", words), expected)


@pytest.mark.parametrize("separator", ["", "x", "_9"])
def test_a_word_boundary_is_the_end_of_a_string(words: Path, separator: str) -> None:
    """Whatever is printed behind it."""
    for pattern in (r"\bfoo", r"foo\b", r"\bx\b"):
        regex = re.compile(pattern.encode())
        texts = gnu_of_words(words).split(b"\n")[:-1]
        expected = b"".join(t + separator.encode() for t in texts if regex.search(t))
        same(lines_of("-s", separator, "--match", pattern, words), expected)


def test_wide_strings_are_filtered_by_their_text(tmp_path: Path) -> None:
    path = tmp_path / "wide"
    path.write_bytes("\1".join(("user 12", "users", "a user", "none")).encode("utf-16-le"))
    assert lines_of("-el", "--contains", "user", path) == b"user 12\nusers\na user\n"
    assert lines_of("-el", "--match", r"^user\b", path) == b"user 12\n"
    assert lines_of("-el", "-i", "--match", "USER$", "-tx", path) == b"     1c a user\n"


@pytest.mark.parametrize("form", FORMS[:4], ids=" ".join)
def test_unique(words: Path, form: tuple[str, ...]) -> None:
    seen: set[bytes] = set()

    def is_new(found: bytes) -> bool:
        new = found not in seen
        seen.add(found)
        return new

    expected = _filtered(words, form, is_new)
    same(lines_of(*form, "--unique", words), expected)
    seen.clear()
    expected = _filtered(words, form, lambda t: b"foo" in t and is_new(t))
    same(lines_of(*form, "--unique", "--contains", "foo", words, "--threads", 3), expected)


def test_unique_over_several_sources(words: Path) -> None:
    once = lines_of("--unique", words)
    assert lines_of("--unique", words, words) == once


def test_count(mixed: Path, words: Path) -> None:
    for path in (mixed, words):
        for options in ((), ("-n", "2"), ("-e", "l"), ("-n", "1", "-e", "b"), ("-U", "hex")):
            lines = lines_of(*options, path).count(b"\n")
            assert lines_of("-c", *options, path) == b"%d\n" % lines
    both = gnu(mixed).count(b"\n") + gnu_of_words(words).count(b"\n")
    assert lines_of("--count", mixed, words) == b"%d\n" % both


def test_context_takes_the_memory_of_one_hex_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made = []

    def make(*args: Any, **options: Any) -> Hexdump:
        made.append(args)
        return Hexdump(*args, **options)

    monkeypatch.setattr(strings_output, "Hexdump", make)
    path = tmp_path / "data"
    path.write_bytes(b"".join(b"text %d\0" % i for i in range(100)))
    with pytest.raises(SystemExit) as end:
        main(["strings", "--context", "8", str(path)])
    assert end.value.code == 0
    assert capfdbinary.readouterr().out.count(b"\n    ") >= 100
    assert made == [(8,)]


@pytest.mark.parametrize("context", [1, 7, 16, 40])
def test_context_is_what_hexdump_shows(tmp_path: Path, rng: random.Random, context: int) -> None:
    data = tokens(rng, 600)
    path = tmp_path / "data"
    path.write_bytes(data)
    out = lines_of("-t", "d", "--context", context, path).split(b"\n")[:-1]
    plain = gnu("-t", "d", path).split(b"\n")[:-1]
    assert [line for line in out if not re.match(rb"    [0-9a-f]{8}  ", line)] == plain
    blocks: list[list[bytes]] = []
    for line in out:
        if re.match(rb"    [0-9a-f]{8}  ", line):
            blocks[-1].append(line)
        else:
            blocks.append([])
    dumped = data.ljust(len(data) // 16 * 16 + 16, b"\1")
    hexdump = execute([program("hexdump"), "-v", "-C"], input=dumped).out.splitlines()
    for line, block in zip(plain, blocks, strict=True):
        at = int(line.split()[0])
        length = len(line) - 8 if at < 10**7 else 0
        start, end = max(at - context, 0), min(at + length + context, len(data))
        shown = b"".join(_bytes_of(row) for row in block)
        assert shown == data[start:end]
        for row in block[1:-1]:  # whole lines
            assert row[4:] == hexdump[int(row.split()[0], 16) // 16]
        assert [int(row.split()[0], 16) for row in block] == list(range(start // 16 * 16, end, 16))


def _bytes_of(row: bytes) -> bytes:
    """The bytes of a line of hexdump -C."""
    shown = re.search(rb"\|(.*)\|$", row, re.DOTALL)
    assert shown
    return bytes.fromhex(row[4:].split(b"  ", 1)[1][:49].decode())


def test_json_says_what_the_lines_say(mixed: Path) -> None:
    for encoding in ENCODINGS:
        plain = gnu("-t", "d", "-e", encoding, mixed).split(b"\n")[:-1]
        records = [
            json.loads(row) for row in lines_of("--json", "-e", encoding, mixed).splitlines()
        ]
        width = {"s": 1, "S": 1, "l": 2, "b": 2, "L": 4, "B": 4}[encoding]
        assert plain == [
            b"%7d %s" % (int(r["address"], 16), r["text"].encode("latin-1")) for r in records
        ]
        for record in records:
            assert record["length"] == len(record["text"]) * width
            assert record["encoding"] == encoding
            assert record["path"] == str(mixed)
            assert record["label"] == "file"
            assert record["region"] == "0x0"
    both = lines_of("--json", "-f", mixed, mixed).splitlines()
    assert {json.loads(line)["source"] for line in both} == {str(mixed)}


def test_json_of_utf8(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes("naïve 日本 🐍\0".encode())
    (record,) = map(json.loads, lines_of("--json", "-U", "locale", path).splitlines())
    assert (record["text"], record["length"]) == ("naïve 日本 🐍", len("naïve 日本 🐍".encode()))
    assert record["encoding"] == "U"


def test_json_of_strange_names(tmp_path: Path) -> None:
    name = os.fsdecode(b"na\xffme\n")
    (tmp_path / name).write_bytes(b"some text")
    done = run("--json", "-f", name, cwd=tmp_path)
    (record,) = map(json.loads, done.out.splitlines())
    assert record["source"] == record["path"] == name
    assert lines_of("-f", name, cwd=tmp_path) == gnu("-f", name, cwd=tmp_path)
