"""Files that a URL names, read by ranges: what fsspec reaches.

Ranges are fetched as blocks of 256 KiB, of which a bounded number is kept, so that headers and
frames that lie together cost one request. Where somebody reads front to back, what follows is
fetched ahead, up to 8 MiB, by a few threads. What a server does not give is lost, with its reason;
after some failures in a row it is not asked again, for each may take as long as a timeout.

Consistency: nothing tells when a file is replaced while it is read. A frame of a ``.core.lz4``
fails its checksum then.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, TypeAlias

from fastdump.errors import FastdumpError, NotPermitted, UsageError
from fastdump.storage import TRUNCATED, Folder, Lost, Storage
from fastdump.url import shown

BLOCK_SIZE = 256 << 10
# In blocks: the most of one request; what is fetched at first, which is a frame of 1 MiB wherever
# it begins; the most ahead of one reader; and all that is kept.
_REQUEST, _FIRST, _MOST_AHEAD, _KEPT = 8, 5, 32, 256
_THREADS = 8
_READERS = 64
_TRIES = 2
_GIVE_UP = 3  # failures in a row
_PATIENCE = 30  # seconds without an answer

Key: TypeAlias = "tuple[str, int]"

_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_ENDPOINT_URL for "
    "another server than Amazon's, FSSPEC_S3_ANON=1 for a public bucket",
    "ssh": "try it with ssh first: its keys, ~/.ssh/config and ~/.ssh/known_hosts are used",
    "http": "put the user and password, or the signature, into the URL",
}
_KINDS = {"s3a": "s3", "sftp": "ssh", "https": "http"}


def kind_of(url: str) -> str:
    """The protocol of a URL: one name where there are several."""
    protocol = url.partition(":")[0].lower()
    return _KINDS.get(protocol, protocol)


@contextlib.contextmanager
def opening(url: str) -> Iterator[None]:
    """Make one line of whatever the package of a protocol raises.

    Raises:
        UsageError: The URL names nothing, or nothing answers, or a package is missing.
        NotPermitted: The server refuses.
    """
    try:
        yield
    except FastdumpError:
        raise
    except ImportError as error:
        raise UsageError(
            f"{shown(url)} needs a package that is not installed: {error}",
            "pip install fsspec, with s3fs for s3, sshfs for ssh, aiohttp for https",
        ) from None
    except FileNotFoundError:
        raise UsageError(f"cannot read {shown(url)}: there is no such file or bucket") from None
    except Exception as error:  # each package has its own kinds
        message = f"cannot read {shown(url)}: {reason_of(error)}"
        if is_refusal(error):
            raise NotPermitted(message, credentials_hint(url)) from None
        raise UsageError(message, "is the name right, and does its server run?") from None


def credentials_hint(url: str) -> str:
    """Where the credentials of a URL come from."""
    return _CREDENTIALS.get(kind_of(url), "")


def is_refusal(error: BaseException) -> bool:
    """Whether credentials are wrong, missing, or do not suffice."""
    name = type(error).__name__  # of packages that may not be there
    return isinstance(error, PermissionError) or "Credential" in name or "HostKey" in name


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    return shown(" ".join(str(error).split()))[:300] or type(error).__name__


def connect(url: str, patience: int = _PATIENCE) -> tuple[Any, str]:
    """The file system of a URL, and the path there.

    Args:
        patience: Seconds without an answer after which a request has failed.

    Raises:
        UsageError, NotPermitted: It cannot be reached.
    """
    kind = kind_of(url)
    options: dict[str, Any] = {}
    with opening(url):
        import fsspec.config
        import fsspec.core

        def configured(name: str) -> dict[str, Any]:
            found: dict[str, Any] = fsspec.config.conf.get(kind, {}).get(name, {})
            return found

        if kind == "ssh":
            import sshfs  # noqa: F401  # else fsspec takes paramiko, which trusts every host key

            # sshfs alone would accept any host key too.
            options = {"known_hosts": (), "connect_timeout": patience, "keepalive_interval": 10}
        elif kind == "http":
            import aiohttp

            limits = aiohttp.ClientTimeout(None, sock_connect=patience, sock_read=patience)
            options = {"client_kwargs": {"timeout": limits, **configured("client_kwargs")}}
        elif kind == "s3":
            options = {"config_kwargs": {"read_timeout": patience, **configured("config_kwargs")}}
        # A file system that is kept may have a connection that has broken meanwhile.
        fs, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, **options)
        return fs, path


def open_remote(url: str) -> RemoteFile | RemoteFolder:
    """What a URL names.

    Raises:
        UsageError: There is no such file, or its server does not answer, or gives no ranges.
        NotPermitted: The server refuses.
    """
    fs, path = connect(url)
    with opening(url):
        if kind_of(url) == "http":
            return RemoteFile(Fetcher(fs, url), path, _http_size(fs, path, url))
        info = fs.info(path)
        if info["type"] == "directory":
            return RemoteFolder(fs, path, url)
        return RemoteFile(Fetcher(fs, url), path, int(info["size"]))


def _http_size(fs: Any, path: str, url: str) -> int:
    """The size of a file, from the answer to a range: a server may have none and send all of it."""
    from fsspec.asyn import sync

    async def ask() -> tuple[int, str]:
        session = await fs.set_session()
        options = {**fs.kwargs}  # of a request, as configured
        headers = {**options.pop("headers", {}), "Range": "bytes=0-0"}
        async with session.get(fs.encode_url(path), headers=headers, **options) as answer:
            return answer.status, answer.headers.get("Content-Range", "")

    status, content_range = sync(fs.loop, ask)
    size = content_range.rpartition("/")[2]
    if status in (206, 416) and size.isdigit():  # 416: of an empty file
        return int(size)
    if status in (404, 410):
        raise FileNotFoundError
    if status in (401, 403, 407):
        raise PermissionError(f"the server refuses it (HTTP {status})")
    if status != 200:
        raise OSError(f"HTTP status {status}")
    raise UsageError(f"the server of {shown(url)} gives no ranges", "download the file first")


class Unreachable(Exception):
    """A range that cannot be had, and why."""


class _Run:
    """Blocks that one request brings."""

    def __init__(self, path: str, first: int, end: int, future: Future[bytes]) -> None:
        self.path, self.first, self.end, self.future = path, first, end, future

    @property
    def blocks(self) -> list[Key]:
        return [(self.path, number) for number in range(self.first, self.end)]


class Fetcher:
    """Blocks of the files of one server. Threads may share it.

    Attributes:
        down: Why the server is not asked any more; empty while it is.
    """

    def __init__(self, fs: Any, url: str) -> None:
        self._fs = fs
        self._url = url
        fetch = getattr(fs, "_cat_file", fs.cat_file)
        # sshfs would take the whole file each time.
        self._has_ranges = "start" in inspect.signature(fetch).parameters
        self._pool = ThreadPoolExecutor(_THREADS, "fetch")
        self._lock = threading.Lock()
        self._runs: OrderedDict[_Run, None] = OrderedDict()  # the least recently used first
        self._at: dict[Key, _Run] = {}
        self._count = 0  # of blocks that are kept
        # The block that each reader needs next: how many go ahead, and up to where they were asked.
        self._readers: OrderedDict[Key, tuple[int, int]] = OrderedDict()
        self._failures = 0
        self.down = ""

    def block(self, path: str, size: int, number: int, end: int) -> memoryview:
        """A block of a file of *size* bytes.

        Args:
            end: Up to which block the reader may go on.

        Raises:
            Unreachable: It cannot be had.
        """
        with self._lock:
            run = self._wanted(path, size, number, end)
        try:
            data = run.future.result()
        except CancelledError:
            raise Unreachable("closed") from None
        except Unreachable:
            with self._lock:
                self._drop(run)  # the next one may have more luck
            raise
        at = (number - run.first) * BLOCK_SIZE
        return memoryview(data)[at : at + BLOCK_SIZE]

    def _wanted(self, path: str, size: int, number: int, end: int) -> _Run:
        """The run of a block, requested if need be; and what follows, where that will be read."""
        key = (path, number)
        last = -(-size // BLOCK_SIZE)
        reader = self._readers.pop(key, None)
        if reader:
            ahead, asked = reader
            if asked - number <= ahead // 2:
                ahead = min(max(2 * ahead, _FIRST), self._most_ahead())
                until = min(number + 1 + ahead, last)
                self._request(path, size, max(asked, number), until)
                asked = max(asked, until)
            self._readers[path, number + 1] = ahead, asked
        elif (path, number + 1) not in self._readers:
            asked = min(number + _FIRST, end, last)
            self._request(path, size, number, asked)
            self._readers[path, number + 1] = 0, asked
        while len(self._readers) > _READERS:
            self._readers.popitem(last=False)
        if key not in self._at:
            self._request(path, size, number, number + 1)
        run = self._at[key]
        self._runs.move_to_end(run)
        return run

    def _most_ahead(self) -> int:
        """So that what is ahead of all readers is a half of what is kept."""
        readers = sum(1 for ahead, _ in self._readers.values() if ahead) + 1
        return max(min(_KEPT // 2 // readers, _MOST_AHEAD), 2)

    def _request(self, path: str, size: int, number: int, until: int) -> None:
        """Request those blocks that are not there."""
        while number < until:
            if (path, number) in self._at:
                number += 1
                continue
            first = number
            while number < min(until, first + _REQUEST) and (path, number) not in self._at:
                number += 1
            start, end = first * BLOCK_SIZE, min(number * BLOCK_SIZE, size)
            run = _Run(path, first, number, self._pool.submit(self._fetch, path, start, end))
            self._runs[run] = None
            self._at.update(dict.fromkeys(run.blocks, run))
            self._count += number - first
        while self._count > _KEPT:
            self._drop(next(iter(self._runs)))

    def _drop(self, run: _Run) -> None:
        if run in self._runs:
            del self._runs[run]
            self._count -= run.end - run.first
            for key in run.blocks:
                del self._at[key]

    def _fetch(self, path: str, start: int, end: int) -> bytes:
        error: BaseException | None = None
        for _ in range(_TRIES):
            if self.down:
                raise Unreachable(self.down)
            try:
                data = self._range(path, start, end)
            except Exception as found:  # each package has its own kinds
                error = found
                if isinstance(found, FileNotFoundError) or is_refusal(found):
                    break
                continue
            if len(data) == end - start:
                self._failures = 0
                return data
            error = EOFError(f"the server sent {len(data):,} bytes of {end - start:,}")
        assert error
        reason = f"cannot read {shown(self._url)}: {reason_of(error)}"
        with self._lock:
            self._failures += 1
            if self._failures >= _GIVE_UP:
                self.down = reason
        raise Unreachable(reason)

    def _range(self, path: str, start: int, end: int) -> bytes:
        data: bytes
        if self._has_ranges:
            data = self._fs.cat_file(path, start=start, end=end)
        else:
            with self._fs.open(path, "rb") as file:
                file.seek(start)
                data = file.read(end - start)
        return data

    def close(self) -> None:
        """Forget all blocks; harmless a second time."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for kept in (self._runs, self._at, self._readers):
                kept.clear()
            self._count = 0


class RemoteFile(Storage):
    """A file on a server. Closing one of a folder closes all."""

    def __init__(self, fetcher: Fetcher, path: str, size: int) -> None:
        self._fetcher, self._path, self.size = fetcher, path, size

    def parts(self, offset: int, length: int) -> Iterator[bytes | memoryview | Lost]:
        end = offset + length
        while offset < end:
            if offset >= self.size or self._fetcher.down:
                yield Lost(end - offset, self._fetcher.down or TRUNCATED)
                return
            number, at = divmod(offset, BLOCK_SIZE)
            stop = min(end, (number + 1) * BLOCK_SIZE, self.size)
            until = -(-min(end, self.size) // BLOCK_SIZE)
            try:
                block = self._fetcher.block(self._path, self.size, number, until)
                yield block[at : at + stop - offset]
            except Unreachable as error:
                yield Lost(stop - offset, str(error))
            offset = stop

    def read(self, offset: int, length: int) -> bytes:
        """As much of a range as there is.

        Raises:
            UsageError: The server does not give it: so it is not known what the file is.
        """
        found = []
        for part in self.parts(offset, length):
            if isinstance(part, Lost):
                if part.reason != TRUNCATED:
                    raise UsageError(part.reason)
                break
            found.append(part)
        return b"".join(found)

    def close(self) -> None:
        self._fetcher.close()


class RemoteFolder(Folder):
    """A folder on a server."""

    def __init__(self, fs: Any, path: str, url: str) -> None:
        self._fetcher = Fetcher(fs, url)
        self._paths = {
            entry["name"].rstrip("/").rpartition("/")[2]: (entry["name"], int(entry["size"] or 0))
            for entry in fs.ls(path, detail=True)
            if entry["type"] == "file"
        }

    def files(self) -> dict[str, int]:
        return {name: size for name, (_, size) in self._paths.items()}

    def file(self, name: str) -> RemoteFile:
        return RemoteFile(self._fetcher, *self._paths[name])

    def data(self, name: str, size: int) -> Iterator[tuple[int, int]]:
        yield 0, size
