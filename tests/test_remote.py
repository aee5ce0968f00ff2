"""URLs as sources and outputs: real servers on the loopback, and what goes over the wire."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

import fastdump
from fastdump.cli import cli
from fastdump.dump import dump, open_writer
from fastdump.errors import (
    CorruptDump,
    FastdumpError,
    NotPermitted,
    OutputFailed,
    SourceGone,
    UsageError,
)
from fastdump.process import LiveProcess
from fastdump.selection import Preset
from fastdump.snapshot import Snapshot
from fastdump.sources import open_source
from fastdump.survey import Survey
from fastdump.url import is_url, shown

pytest.importorskip("fsspec")
pytest.importorskip("moto")

import fsspec

import servers
from fastdump import remote, remote_output
from fastdump.remote import BLOCK_SIZE, RemoteFile, RemoteFolder, open_remote
from fastdump.storage import TRUNCATED, Lost
from test_real import ending

SEED = int(os.environ.get("FASTDUMP_TEST_SEED", "20241128"))
RUN = (sys.executable, "-m", "fastdump")
MEGABYTE = 1 << 20
# Holds so many bytes that LZ4 cannot compress, and a marker, until its standard input ends.
TARGET = """
import random, sys
held, rng = bytearray({size}), random.Random({seed})
for at in range(0, {size}, 1 << 20):
    held[at : at + (1 << 20)] = rng.randbytes(1 << 20)
marker = b"marker-of-" + b"the-target"
print(marker.decode(), flush=True)
sys.stdin.read()
"""


class Target(NamedTuple):
    """A process to be dumped."""

    pid: int
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def holding(size: int) -> Iterator[Target]:
    """A process that holds *size* random bytes."""
    command = [sys.executable, "-c", TARGET.format(seed=SEED, size=size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"marker-of-the-target\n"
            yield Target(process.pid, process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with holding(24 * MEGABYTE) as found:
        yield found


@pytest.fixture(scope="module")
def dumps(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dumps of the target in each format: ``app.FORMAT``."""
    folder = tmp_path_factory.mktemp("dumps")
    for format in ("core", "lz4", "raw", "raw-lz4"):
        path = folder / f"app.{format}"
        subprocess.run([*RUN, "dump", str(target.pid), "-qf", format, "-o", path], check=True)
    return folder


@pytest.fixture
def rng() -> random.Random:
    print(f"FASTDUMP_TEST_SEED={SEED}")
    return random.Random(SEED)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Credentials of nobody, for this process and those that it starts."""
    for name, value in servers.S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return servers.S3_ENVIRONMENT


class Bucket(NamedTuple):
    """A bucket on an S3-compatible server behind a wire; ``fs`` goes past the wire."""

    url: str
    wire: servers.Wire
    fs: Any
    name: str

    @property
    def uploads(self) -> list[Any]:
        """Those that are neither completed nor aborted."""
        found = self.fs.call_s3("list_multipart_uploads", Bucket=self.name)
        return list(found.get("Uploads", ()))

    @property
    def names(self) -> list[str]:
        self.fs.invalidate_cache()
        return sorted(self.fs.ls(self.name, detail=False))


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    with servers.s3_server() as port:
        yield port


NUMBERS = itertools.count()


@pytest.fixture
def bucket(
    s3_port: int, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    with servers.wire(s3_port) as wire:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{wire.port}")
        past = f"http://127.0.0.1:{s3_port}"
        fs = fsspec.filesystem("s3", endpoint_url=past, skip_instance_cache=True)
        name = f"bucket{next(NUMBERS)}"
        fs.mkdir(name)
        yield Bucket(f"s3://{name}", wire, fs, name)


@pytest.fixture
def memory() -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    yield "memory://dumps"
    fs.store.clear()
    fs.pseudo_dirs.clear()


def put(folder: Path, url: str) -> None:
    """Copy a file or a folder of files to a URL."""
    fs, path = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    for file in [folder] if folder.is_file() else folder.iterdir():
        fs.pipe_file(path if folder.is_file() else f"{path}/{file.name}", file.read_bytes())


def run(*args: str | Path | int, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run fastdump as a user does."""
    return subprocess.run([*RUN, *map(str, args)], capture_output=True, text=True, **options)


def call(*args: str | Path | int) -> tuple[int, str]:
    """Run fastdump in this process: its exit code and output."""
    result = CliRunner().invoke(cli, [str(arg) for arg in args], standalone_mode=False)
    if isinstance(result.exception, FastdumpError):
        return result.exception.exit_code, str(result.exception)
    if result.exception:
        raise result.exception
    return result.return_value, result.output


def error_of(*args: str | Path | int) -> FastdumpError:
    """What ends fastdump in this process."""
    error = CliRunner().invoke(cli, [str(arg) for arg in args], standalone_mode=False).exception
    assert isinstance(error, FastdumpError), error
    return error


def memory_of(name: str) -> dict[int, bytes]:
    """All that a dump holds: by the start of its regions, with zeros for gaps."""
    held = {}
    with open_source(name) as source:
        for region in source.regions:
            content = bytearray()
            for part in source.walk([region[:2]]):  # type: ignore[list-item]
                data = getattr(part, "data", None)
                content += bytes(part.end - part[0]) if data is None else data
            held[region.start] = bytes(content)
    return held


# ---- Reading.


def test_what_is_a_url() -> None:
    for url in ("s3://b/x", "SSH://host/x", "memory://x", "simplecache::s3://b/x"):
        assert is_url(url)
    for path in ("/s3://x", "./s3://b/x", "1234", "a:b", "file:///x", "app.core", ""):
        assert not is_url(path)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("ssh://me:pass@host/x", "ssh://me@host/x"),
        ("https://host/x?Signature=s", "https://host/x"),
        ("404, url='https://me:p@host/x?Signature=s', gone", "404, url='https://me@host/x', gone"),
        ("s3://bucket/what:ever@home", "s3://bucket/what:ever@home"),
    ],
)
def test_secrets_are_not_shown(text: str, safe: str) -> None:
    assert shown(text) == safe


@pytest.fixture(params=["memory", "http", "s3", "ssh"])
def served(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL by which what is put into it (before the first read) is had."""
    folder = tmp_path / "served"
    folder.mkdir()
    if request.param == "http":
        with servers.http_server(folder) as port:
            yield folder, f"http://127.0.0.1:{port}"
    elif request.param == "ssh":
        monkeypatch.setenv("HOME", str(tmp_path))
        with servers.sftp_server(tmp_path) as port:
            yield folder, f"ssh://127.0.0.1:{port}{folder}"
    else:
        name = "memory" if request.param == "memory" else "bucket"
        found = request.getfixturevalue(name)
        yield folder, found if name == "memory" else found.url


def published(folder: Path, url: str) -> str:
    """Where the folder is had by its URL."""
    if url.startswith(("memory", "s3")):
        for file in folder.rglob("*"):
            if file.is_file():
                put(file, f"{url}/{file.relative_to(folder)}")
    return url


def test_any_range_is_what_the_file_has(served: tuple[Path, str], rng: random.Random) -> None:
    """Short and long ones, in several threads, at the edges of blocks and of the file."""
    folder, url = served
    size = 9 * MEGABYTE + 12345
    content = rng.randbytes(size)
    (folder / "file").write_bytes(content)
    file = open_remote(published(folder, url) + "/file")
    assert isinstance(file, RemoteFile)
    assert file.size == size
    edges = [BLOCK_SIZE * n + d for n in (0, 1, 5, 36, 40) for d in (-1, 0, 1)] + [size - 1, size]
    ranges = [(0, size), (0, 0), (size, 1), (size - 10, 20), (size + 5, 5)]
    for _ in range(60):
        start = rng.choice([rng.randrange(size), max(rng.choice(edges), 0)])
        ranges.append((start, rng.choice([1, 18, 4096, BLOCK_SIZE, 3 * MEGABYTE, size])))

    def check(range_: tuple[int, int]) -> None:
        offset, length = range_
        parts = list(file.parts(offset, length))
        there = b"".join(part for part in parts if not isinstance(part, Lost))
        lost = [part for part in parts if isinstance(part, Lost)]
        assert there == content[offset : offset + length]
        missing = length - len(there)
        assert lost == ([Lost(missing, TRUNCATED)] if missing else [])

    with contextlib.closing(file), ThreadPoolExecutor(4) as pool:
        list(pool.map(check, ranges))


@pytest.mark.parametrize("format", ["core", "lz4"])
def test_a_dump_on_a_server_is_that_dump(
    served: tuple[Path, str], dumps: Path, format: str
) -> None:
    folder, url = served
    (folder / "app").write_bytes((dumps / f"app.{format}").read_bytes())
    with open_source(published(folder, url) + "/app") as source:
        assert source.format == format
    assert memory_of(f"{url}/app") == memory_of(str(dumps / f"app.{format}"))


@pytest.mark.parametrize("format", ["raw", "raw-lz4"])
def test_a_raw_dump_in_a_folder(memory: str, dumps: Path, format: str) -> None:
    put(dumps / f"app.{format}", f"{memory}/app")
    for name in (f"{memory}/app", f"{memory}/app/"):
        assert memory_of(name) == memory_of(str(dumps / f"app.{format}"))


def test_a_raw_dump_in_a_bucket_and_by_sftp(
    bucket: Bucket, dumps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(dumps / "app.raw", f"{bucket.url}/app")
    there = memory_of(str(dumps / "app.raw"))
    assert memory_of(f"{bucket.url}/app") == there
    monkeypatch.setenv("HOME", str(tmp_path))
    with servers.sftp_server(tmp_path) as port:
        assert memory_of(f"ssh://127.0.0.1:{port}{dumps}/app.raw") == there


def test_strings_of_each_kind_of_file(bucket: Bucket, dumps: Path) -> None:
    """Of dumps by address, of other files by offset; the output is that of the local file."""
    plain = max((dumps / "app.raw").glob("*.bin"), key=lambda path: path.stat().st_size)
    names = ("app.lz4", "app.raw", "app.raw-lz4", f"app.raw/{plain.name}")
    for name in names:
        put(dumps / name, f"{bucket.url}/{name}")
        found = run("strings", "-t", "x", f"{bucket.url}/{name}")
        there = run("strings", "-t", "x", dumps / name)
        assert (found.returncode, found.stderr) == (0, "")
        assert found.stdout == there.stdout
        assert "marker-of-the-target" in found.stdout or name == names[-1]
    assert [m.text for m in fastdump.strings(f"{bucket.url}/{names[-1]}")] == [
        m.text for m in fastdump.strings(plain)
    ]


def test_a_file_url_is_the_file(dumps: Path, tmp_path: Path, target: Target) -> None:
    assert memory_of(f"file://{dumps}/app.lz4") == memory_of(str(dumps / "app.lz4"))
    assert memory_of(f"file://{dumps}/app.raw") == memory_of(str(dumps / "app.raw"))
    plain = next((dumps / "app.raw").glob("*.bin"))
    assert call("strings", "-c", f"file://{plain}") == call("strings", "-c", plain)
    out = tmp_path / "out"
    assert call("dump", target.pid, "-qo", f"file://{out}")[0] == 0
    assert call("dump", target.pid, "-qo", f"file://{out}")[0] == OutputFailed.exit_code
    assert out.stat().st_mode & 0o777 == 0o600


def test_blocks_that_are_kept_are_bounded(memory: str) -> None:
    size = 2 * remote._KEPT * BLOCK_SIZE
    fsspec.filesystem("memory").pipe_file("/dumps/zeros", bytes(size))
    with contextlib.closing(open_remote(f"{memory}/zeros")) as file:  # type: ignore[type-var]
        assert isinstance(file, RemoteFile)
        fetcher = file._fetcher
        most = total = 0
        for part in file.parts(0, size):
            assert not isinstance(part, Lost)
            total += len(part)
            kept = sum(run.end - run.first for run in fetcher._runs)
            assert kept == fetcher._count == len(fetcher._at)
            most = max(most, kept)
        assert total == size
        assert remote._KEPT - remote._REQUEST < most <= remote._KEPT


# ---- Bytes on the wire.


def check_wire(bucket: Bucket, target: Target, size: int, most: float) -> None:
    """A look at a dump of *size* bytes and more takes less than *most*."""
    for format in ("lz4", "core"):
        url = f"{bucket.url}/app.{format}"
        assert call("dump", target.pid, "-q", "-f", format, "-o", url)[0] == 0
        stored = bucket.fs.info(f"{bucket.name}/app.{format}")["size"]
        assert stored >= size
        wire = bucket.wire
        wire.down = wire.up = 0
        assert call("info", url)[0] == 0
        described = wire.down + wire.up
        wire.down = wire.up = 0
        with open_source(url) as source:
            largest = max(source.regions, key=lambda r: r.length)
            data = source.read(largest.start + largest.length // 2, 4096)
        looked = wire.down + wire.up
        with open_source(str(target.pid)) as live:
            assert data == live.read(largest.start + largest.length // 2, 4096)
        print(f"{format}: {stored:,} bytes; info {described:,}; open and 4 KiB {looked:,}")
        assert 0 < described < most
        assert 0 < looked < most


def test_a_look_takes_a_hundredth_of_the_dump(bucket: Bucket) -> None:
    """Of one of 256 MiB. The most that a read takes does not grow with the dump."""
    with holding(64 * MEGABYTE) as target:
        check_wire(bucket, target, 64 * MEGABYTE, 256 * MEGABYTE / 100)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_look_at_a_gigabyte(bucket: Bucket) -> None:
    with holding(1 << 30) as target:
        check_wire(bucket, target, 1 << 30, (1 << 30) / 100)


@pytest.mark.parametrize("format", ["lz4", "core"])
def test_a_walk_takes_each_byte_once(bucket: Bucket, dumps: Path, format: str) -> None:
    """With several threads, each of which reads ahead."""
    put(dumps / f"app.{format}", f"{bucket.url}/app")
    size = (dumps / f"app.{format}").stat().st_size
    bucket.wire.down = 0
    assert call("strings", "-c", "--threads", "3", f"{bucket.url}/app")[0] == 0
    assert 0.9 * size < bucket.wire.down < 1.1 * size


# ---- What goes wrong while reading.


def test_nothing_there(bucket: Bucket, memory: str) -> None:
    result = run("info", f"{bucket.url}/none")
    assert result.returncode == UsageError.exit_code
    message = f"fastdump: cannot read {bucket.url}/none: there is no such file or bucket\n"
    assert result.stderr == message
    for url in ("s3://no-such-bucket/x", f"{memory}/none"):
        message = f"cannot read {url}: there is no such file or bucket"
        assert call("info", url) == (UsageError.exit_code, message)


def test_an_empty_file(memory: str) -> None:
    fsspec.filesystem("memory").pipe_file("/dumps/empty", b"")
    assert call("strings", f"{memory}/empty") == (0, "")
    assert call("info", f"{memory}/empty")[0] == UsageError.exit_code


def test_credentials(bucket: Bucket, s3_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong ones and none, with a server that checks them."""
    bucket.fs.pipe_file(f"{bucket.name}/app", b"text of the object")

    def check_from(request: str) -> None:
        url = f"http://127.0.0.1:{s3_port}/moto-api/reset-auth"
        headers = {"Content-Type": "text/plain"}
        with urllib.request.urlopen(urllib.request.Request(url, request.encode(), headers)):
            pass

    none = {k: v for k, v in os.environ.items() if not k.endswith(("_KEY_ID", "_ACCESS_KEY"))}
    anonymous = {**none, "FSSPEC_S3_ANON": "1"}
    assert call("strings", f"{bucket.url}/app")[0] == 0
    refused = run("strings", f"{bucket.url}/app", env=anonymous)
    bucket.fs.chmod(f"{bucket.name}/app", acl="public-read")
    assert run("strings", f"{bucket.url}/app", env=anonymous).returncode == 0
    check_from("0")
    try:
        wrong = run("strings", f"{bucket.url}/app")
        written = error_of("dump", os.getpid(), "-o", f"{bucket.url}/own")
        for name in os.environ.keys() - none.keys():
            monkeypatch.delenv(name)
        missing = error_of("strings", f"{bucket.url}/app")
    finally:
        check_from("inf")
    for result in (wrong, refused):
        assert result.returncode == NotPermitted.exit_code
        first, hint = result.stderr.splitlines()
        assert first.startswith(f"fastdump: cannot read {bucket.url}/app: ")
        assert "AWS_ACCESS_KEY_ID" in hint
    assert missing.exit_code == NotPermitted.exit_code
    assert str(missing).startswith(f"cannot read {bucket.url}/app: ")
    assert written.exit_code == OutputFailed.exit_code
    assert "AWS_ACCESS_KEY_ID" in missing.hint
    assert "AWS_ACCESS_KEY_ID" in written.hint


def test_a_server_that_is_not_there(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers.closed_port() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        secret = f"http://127.0.0.1:{port}/x?Signature=s"
        result = run("strings", secret)
        for url in (secret, f"ssh://127.0.0.1:{port}/x", "s3://b/x"):
            error = error_of("strings", url)
            assert error.exit_code == result.returncode == UsageError.exit_code
            assert str(error).startswith(f"cannot read {shown(url)}: ")
            assert "server run" in error.hint
            assert "Signature" not in f"{error} {error.hint} {result.stderr}"
    first, hint = result.stderr.splitlines()
    assert first.startswith(f"fastdump: cannot read {shown(secret)}: ")
    assert "server run" in hint


def test_answers_of_http(tmp_path: Path) -> None:
    (tmp_path / "app").write_bytes(b"some text\n" * 100)
    (tmp_path / "empty").touch()
    with servers.http_server(tmp_path) as port:
        url = f"http://127.0.0.1:{port}"
        assert call("strings", "-c", f"{url}/app?x=1") == (0, "100\n")
        assert call("strings", f"{url}/empty") == (0, "")
        assert call("strings", f"{url}/none")[0] == UsageError.exit_code
        code, text = call("strings", f"{url}/secret/app")
        assert (code, "HTTP 403" in text) == (NotPermitted.exit_code, True)
        code, text = call("strings", f"{url}/whole/app")
        assert (code, "gives no ranges" in text) == (UsageError.exit_code, True)
        code, text = call("dump", os.getpid(), "-o", f"{url}/own")
        assert (code, "cannot be written to" in text) == (UsageError.exit_code, True)


@pytest.mark.parametrize("format", ["core", "lz4", "raw-lz4"])
def test_a_server_that_dies_while_it_is_read(bucket: Bucket, dumps: Path, format: str) -> None:
    """What it gave before is searched; the rest is a gap, and says why."""
    put(dumps / f"app.{format}", f"{bucket.url}/app")
    bucket.wire.down = 0
    bucket.wire.limits["down", 9 * MEGABYTE] = bucket.wire.cut
    result = run("strings", "-c", f"{bucket.url}/app")
    assert result.returncode == 3, result.stderr
    assert "incomplete" in result.stderr
    assert f"could not be read: cannot read {bucket.url}/app" in result.stderr
    whole = run("strings", "-c", dumps / f"app.{format}")
    assert 0 < int(result.stdout) < int(whole.stdout)


def test_a_server_that_dies_while_it_is_opened(bucket: Bucket, dumps: Path) -> None:
    """That is no corrupt dump."""
    put(dumps / "app.lz4", f"{bucket.url}/app")
    bucket.wire.limits["down", 1000] = bucket.wire.cut
    result = run("info", f"{bucket.url}/app")
    assert result.returncode == UsageError.exit_code, result.stderr
    assert f"cannot read {bucket.url}/app" in result.stderr


def test_a_range_that_fails_once_is_asked_for_again(
    bucket: Bucket, dumps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(dumps / "app.core", f"{bucket.url}/app")
    there = memory_of(f"{bucket.url}/app")
    whole = remote.Fetcher._range
    failed = []

    def sometimes(self: remote.Fetcher, path: str, start: int, end: int) -> bytes:
        if start not in failed:
            failed.append(start)
            return whole(self, path, start, end)[:-1]  # a connection that broke
        return whole(self, path, start, end)

    monkeypatch.setattr(remote.Fetcher, "_range", sometimes)
    assert memory_of(f"{bucket.url}/app") == there
    assert failed


def test_one_range_that_is_lost_costs_that_range(
    memory: str, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    content = rng.randbytes(8 * MEGABYTE)
    fsspec.filesystem("memory").pipe_file("/dumps/app", content)
    whole = remote.Fetcher._range

    def but_one(self: remote.Fetcher, path: str, start: int, end: int) -> bytes:
        if start <= 3 * MEGABYTE < end:
            raise OSError("a bad sector")
        return whole(self, path, start, end)

    monkeypatch.setattr(remote.Fetcher, "_range", but_one)
    file = open_remote(f"{memory}/app")
    assert isinstance(file, RemoteFile)
    with contextlib.closing(file):
        at, lost = 0, 0
        for part in file.parts(0, len(content)):
            if isinstance(part, Lost):
                assert "a bad sector" in part.reason
                lost += part.length
                at += part.length
            else:
                assert part == content[at : at + len(part)]
                at += len(part)
    assert at == len(content)
    assert BLOCK_SIZE <= lost <= remote._REQUEST * BLOCK_SIZE


def test_an_unknown_host_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with servers.sftp_server(tmp_path) as port:
        (tmp_path / ".ssh" / "known_hosts").write_text("")
        code, text = call("strings", f"ssh://127.0.0.1:{port}{tmp_path}/x")
    assert code == NotPermitted.exit_code
    assert "not trusted" in text


# ---- Packages.


def without(folder: Path, *packages: str) -> dict[str, str]:
    """An environment in which packages are not installed."""
    for name in packages:
        (folder / f"{name}.py").write_text("raise ImportError('no module of that name')\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    ("package", "url"), [("fsspec", "s3://b/x"), ("s3fs", "s3://b/x"), ("sshfs", "ssh://h/x")]
)
def test_a_package_that_is_missing(tmp_path: Path, package: str, url: str) -> None:
    result = run("info", url, env=without(tmp_path, package))
    assert result.returncode == UsageError.exit_code
    first, hint = result.stderr.splitlines()
    assert first.startswith(f"fastdump: {url} needs a package that is not installed")
    assert "pip install fsspec" in hint


def test_an_unknown_protocol() -> None:
    code, text = call("info", "nonsense://x")
    assert code == UsageError.exit_code
    assert "nonsense" in text


def test_files_do_without(tmp_path: Path, dumps: Path, target: Target) -> None:
    """Nothing of it is imported where there is no URL."""
    environment = without(tmp_path, "fsspec", "aiohttp", "s3fs", "sshfs", "concurrent")
    for args in (
        ("strings", "-c", dumps / "app.lz4"),
        ("info", dumps / "app.raw"),
        ("dump", target.pid, "-qo", tmp_path / "out"),
    ):
        result = run(*args, env=environment)
        assert result.returncode == 0, result.stderr


# ---- Writing.


@pytest.fixture(params=["memory", "s3", "ssh"])
def writable(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    if request.param == "ssh":
        monkeypatch.setenv("HOME", str(tmp_path))
        with servers.sftp_server(tmp_path) as port:
            yield f"ssh://127.0.0.1:{port}{tmp_path}"
    else:
        name = "memory" if request.param == "memory" else "bucket"
        found = request.getfixturevalue(name)
        yield found if name == "memory" else found.url


def names_at(url: str) -> list[str]:
    fs, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, **known_hosts(url))
    try:
        found = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return sorted(name.rpartition("/")[2] for name in found if "/." not in name)


def known_hosts(url: str) -> dict[str, Any]:
    return {"known_hosts": ()} if url.startswith("ssh") else {}


@pytest.mark.parametrize("format", ["lz4", "core"])
def test_a_dump_is_written_to_a_url(writable: str, target: Target, format: str) -> None:
    url = f"{writable}/app"
    code, report = call("dump", target.pid, "-f", format, "-o", url)
    assert code == 0, report
    assert report.startswith(f"{shown(url)}: ")
    assert names_at(writable) == ["app"]
    with open_source(str(target.pid)) as live, open_source(url) as source:
        region = max(source.regions, key=lambda r: r.length)
        start = region.start + 4096
        assert source.read(start, 20 * MEGABYTE) == live.read(start, 20 * MEGABYTE)


def test_what_exists_is_kept_unless_forced(writable: str, target: Target) -> None:
    url = f"{writable}/app"
    fs, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, **known_hosts(url))
    fs.pipe_file(path, b"precious")
    code, text = call("dump", target.pid, "-qo", url)
    assert (code, f"{shown(url)} exists" in text) == (OutputFailed.exit_code, True)
    assert fs.cat_file(path) == b"precious"
    assert call("dump", target.pid, "-q", "--force", "-o", url)[0] == 0
    assert call("info", url)[0] == 0
    assert names_at(writable) == ["app"]


def test_another_dump_that_runs(memory: str, target: Target) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/dumps/app.part", b"of the other")
    code, text = call("dump", target.pid, "-qo", f"{memory}/app")
    assert (code, "app.part exists" in text) == (OutputFailed.exit_code, True)
    assert fs.cat_file("/dumps/app.part") == b"of the other"


def test_by_sftp_it_is_ours_alone(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with servers.sftp_server(tmp_path) as port:
        url = f"ssh://127.0.0.1:{port}{tmp_path}"
        assert call("dump", target.pid, "-qo", f"{url}/app")[0] == 0
        assert (tmp_path / "app").stat().st_mode & 0o777 == 0o600
        (tmp_path / "link.part").symlink_to(tmp_path / "elsewhere")
        code, text = call("dump", target.pid, "-qo", f"{url}/link")
        assert code == OutputFailed.exit_code
        code, text = call("dump", target.pid, "-qo", f"{url}/no-such-folder/app")
        assert (code, "No such file" in text) == (OutputFailed.exit_code, True)
    assert not (tmp_path / "elsewhere").exists()


def test_outputs_that_make_no_sense(memory: str, bucket: Bucket, target: Target) -> None:
    for format, url, what in (
        ("raw", f"{memory}/app", "folder"),
        ("raw-lz4", f"{bucket.url}/app", "folder"),
        ("lz4", f"{memory}/app/", "names no file"),
        ("lz4", bucket.url, "names a bucket"),
    ):
        code, text = call("dump", target.pid, "-f", format, "-o", url)
        assert (code, what in text) == (UsageError.exit_code, True), text
    code, text = call("dump", target.pid, "-o", "s3://no-such-bucket/app")
    assert (code, "bucket does not exist" in text) == (OutputFailed.exit_code, True)


def test_extract_and_parquet(bucket: Bucket, dumps: Path, in_tmp: Path) -> None:
    """From a URL to a file, and to another URL; bit for bit."""
    put(dumps / "app.lz4", f"{bucket.url}/app.core.lz4")
    assert call("extract", "-q", f"{bucket.url}/app.core.lz4")[0] == 0
    assert (
        call("extract", "-qf", "core", f"{bucket.url}/app.core.lz4", "-o", f"{bucket.url}/app")[0]
        == 0
    )
    core = (in_tmp / "app.core").read_bytes()
    assert bucket.fs.cat_file(f"{bucket.name}/app") == core
    parquet = pytest.importorskip("pyarrow.parquet")
    url = f"{bucket.url}/strings.parquet"
    assert call("strings", f"{bucket.url}/app", "--parquet", url)[0] == 0
    table = parquet.read_table(io.BytesIO(bucket.fs.cat_file(f"{bucket.name}/strings.parquet")))
    assert str(table.num_rows) == call("strings", "-c", dumps / "app.core")[1].strip()


def test_a_file_that_appears_meanwhile_is_kept(bucket: Bucket, target: Target) -> None:
    """The upload is completed on the condition that there is none."""

    def appear() -> None:
        bucket.fs.pipe_file(f"{bucket.name}/app", b"precious")

    bucket.wire.limits["up", 10 * MEGABYTE] = appear
    result = run("dump", target.pid, "-qo", f"{bucket.url}/app")
    assert result.returncode == OutputFailed.exit_code
    assert f"{bucket.url}/app exists" in result.stderr
    assert bucket.fs.cat_file(f"{bucket.name}/app") == b"precious"
    assert not bucket.uploads


@pytest.mark.long  # now and then a connection is not seen to be cut before its patience ends
@pytest.mark.timeout(1500)
def test_a_server_that_dies_while_it_is_written(bucket: Bucket, target: Target) -> None:
    bucket.wire.limits["up", 10 * MEGABYTE] = bucket.wire.cut
    result = run("dump", target.pid, "-qo", f"{bucket.url}/app")
    assert result.returncode == OutputFailed.exit_code
    assert f"cannot write {bucket.url}/app: " in result.stderr
    assert not bucket.names


def test_a_part_that_is_refused(bucket: Bucket, target: Target) -> None:
    """The upload is gone meanwhile: nothing is completed."""

    def gone() -> None:
        (upload,) = bucket.uploads
        where = {"Bucket": bucket.name, "Key": "app", "UploadId": upload["UploadId"]}
        bucket.fs.call_s3("abort_multipart_upload", **where)

    bucket.wire.limits["up", 10 * MEGABYTE] = gone
    result = run("dump", target.pid, "-qo", f"{bucket.url}/app")
    assert result.returncode == OutputFailed.exit_code
    assert not bucket.names


def test_an_interrupt_leaves_nothing(bucket: Bucket, target: Target) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        reached.set()
        go_on.wait(60)

    bucket.wire.limits["up", 10 * MEGABYTE] = wait
    command = (*RUN, "dump", str(target.pid), "-qo", f"{bucket.url}/app")
    with ending(*command, stderr=subprocess.PIPE, text=True) as process:
        assert reached.wait(60)
        assert bucket.uploads
        process.terminate()  # SIGINT may be ignored: nohup, or a shell's &
        go_on.set()
        assert process.wait() == 130
    assert not bucket.names
    assert not bucket.uploads


@pytest.mark.parametrize("kind", ["s3", "memory"])
def test_a_target_that_goes_away(
    kind: str, memory: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read stays as NAME.part; on S3 nothing does."""
    where = bucket.url if kind == "s3" else memory
    with holding(16 * MEGABYTE) as target, LiveProcess(target.pid) as process:
        survey = Survey(process, Preset.DEBUGGER, ())
        with contextlib.closing(survey):
            writer, name = open_writer("lz4", f"{where}/app")
            emit = writer.emit
            assert emit

            def kill_first(result: Any) -> None:
                target.process.kill()
                target.process.wait()
                emit(result)

            monkeypatch.setattr(writer, "emit", kill_first)
            with pytest.raises(SourceGone) as raised:
                dump(survey, Snapshot(process), writer, name, "lz4", threads=1, begun=0.0)
    if kind == "s3":
        assert "nothing" in raised.value.hint
        assert not bucket.names
        assert not bucket.uploads
        return
    assert f"{where}/app.part" in raised.value.hint
    assert names_at(where) == ["app.part"]
    with open_source(f"{where}/app.part") as source:
        assert any(gap.reason == "target gone" for gap in source.gaps)  # type: ignore[attr-defined]


def test_parts_of_an_upload_grow(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 are all that S3 takes: so each is doubled from time to time."""
    monkeypatch.setattr(remote_output, "_DOUBLED_AFTER", 1)
    monkeypatch.setattr(remote_output, "_PART_SIZE", 5 * MEGABYTE)
    content = random.Random(SEED).randbytes(40 * MEGABYTE)
    upload = remote_output.open_remote_output(f"{bucket.url}/grown")
    stream = upload.stream()
    for at in range(0, len(content), MEGABYTE):
        stream.write(memoryview(content)[at : at + MEGABYTE])
    assert upload.commit() == len(content)
    assert bucket.fs.cat_file(f"{bucket.name}/grown") == content
    assert bucket.fs.info(f"{bucket.name}/grown")["ETag"].endswith('-4"')  # 5, 10, 20 and 5 MiB


def test_an_object_that_is_no_dump(memory: str) -> None:
    fsspec.filesystem("memory").pipe_file("/dumps/folder/readme", b"text")
    with pytest.raises(UsageError, match="without a dump"):
        open_source(f"{memory}/folder")
    assert isinstance(open_remote(f"{memory}/folder"), RemoteFolder)
    fsspec.filesystem("memory").pipe_file("/dumps/text", b"some text")
    with pytest.raises(UsageError, match="is no core"):
        open_source(f"{memory}/text")
    fsspec.filesystem("memory").pipe_file("/dumps/broken", b"\x7fELF\2\1\1" + bytes(9) + b"\4\0")
    with pytest.raises(CorruptDump):
        open_source(f"{memory}/broken")
