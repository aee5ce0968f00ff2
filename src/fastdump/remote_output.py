"""Outputs that a URL names: there is nothing of that name until it is whole.

On S3 that is what a multipart upload is: its parts are no object until it is completed, and
are gone when it is aborted. Elsewhere the file is ``NAME.part`` until it is moved.
"""

from __future__ import annotations

import contextlib
import errno
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fastdump.errors import FastdumpError, OutputFailed, UsageError
from fastdump.output import Output
from fastdump.remote import connect, credentials_hint, is_refusal, kind_of, reason_of
from fastdump.url import shown

# S3 takes 10,000 parts of at least 5 MiB: so parts are doubled, for 5 TiB in all. Of those that
# are under way some 64 MiB are held, or two parts.
_PART_SIZE, _DOUBLED_AFTER = 16 << 20, 1250
_UNDER_WAY = 64 << 20
_THREADS = 4
# Seconds. To complete an upload some servers copy all of it, and say nothing meanwhile.
_PATIENCE = 300


def open_remote_output(url: str, force: bool = False) -> Output:
    """An output that a URL names; nothing is written before its first use.

    Raises:
        OutputFailed: It exists (and *force* is not given), or cannot be written.
        UsageError: Nothing can be written there.
    """
    kind = kind_of(url)
    if kind == "http":
        raise UsageError(f"{shown(url)} cannot be written to", "name a file, s3:// or ssh://")
    if url.endswith("/"):
        raise UsageError(f"{shown(url)} names no file", "name a file with -o")
    return (Upload if kind == "s3" else RemotePart)(url, force)


@contextlib.contextmanager
def _writing(url: str) -> Iterator[None]:
    """Make one line of whatever the package of a protocol raises: OutputFailed."""
    try:
        yield
    except FastdumpError:
        raise
    except FileExistsError:
        raise _exists(url) from None
    except Exception as error:  # each package has its own kinds
        hint = credentials_hint(url) if is_refusal(error) else ""
        if isinstance(error, FileNotFoundError):
            hint = "create its bucket or folder first"
        raise OutputFailed(f"cannot write {shown(url)}: {reason_of(error)}", hint) from None


def _exists(url: str) -> OutputFailed:
    return OutputFailed(f"{shown(url)} exists", "--force replaces it")


def _check_free(fs: Any, path: str, url: str) -> None:
    with _writing(url):
        if fs.exists(path):
            raise _exists(url)


class Upload:
    """A multipart upload to S3; its own stream."""

    def __init__(self, url: str, force: bool) -> None:
        self._url, self._force = url, force
        self._fs, path = connect(url, _PATIENCE)
        bucket, key, _ = self._fs.split_path(path)
        if not key:
            raise UsageError(f"{shown(url)} names a bucket", "name a file in it with -o")
        self._where = {"Bucket": bucket, "Key": key}
        if not force:
            _check_free(self._fs, path, url)
        self.length = 0
        self._id = ""
        self._etags: list[str] = []
        self._sent: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(_THREADS, "upload")
        self._buffer = bytearray()

    def stream(self) -> Upload:
        with _writing(self._url):
            made = self._fs.call_s3("create_multipart_upload", **self._where)
            self._id = made["UploadId"]
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append *data*.

        Raises:
            OutputFailed: A part could not be sent.
        """
        self.length += len(data)
        self._buffer += data
        if len(self._buffer) >= _PART_SIZE << len(self._etags) // _DOUBLED_AFTER:
            self._send()

    def flush(self) -> None:
        """Send all of it."""
        if self._buffer:
            self._send()
        self._wait(0)

    def _send(self) -> None:
        part, self._buffer = self._buffer, bytearray()
        self._wait(max(_UNDER_WAY // len(part), 1))
        self._etags.append("")
        self._sent.append(self._pool.submit(self._send_part, len(self._etags), part))

    def _send_part(self, number: int, part: bytearray) -> None:
        sent = self._fs.call_s3(
            "upload_part", **self._where, UploadId=self._id, PartNumber=number, Body=part
        )
        self._etags[number - 1] = sent["ETag"]

    def _wait(self, most: int) -> None:
        """Until at most so many parts are under way."""
        with _writing(self._url):
            while len(self._sent) > most:
                self._sent.popleft().result()

    def commit(self) -> int:
        """Make it an object: its size in bytes."""
        self.flush()
        parts = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(self._etags, 1)]
        whole = {**self._where, "UploadId": self._id, "MultipartUpload": {"Parts": parts}}
        with _writing(self._url):
            try:
                unless = {} if self._force else {"IfNoneMatch": "*"}
                self._fs.call_s3("complete_multipart_upload", **whole, **unless)
            except OSError as error:
                if error.errno != errno.ENOSYS:  # a server that knows no conditions
                    raise
                self._fs.call_s3("complete_multipart_upload", **whole)
        self._id = ""
        self._pool.shutdown()
        return self.length

    def keep(self) -> str:
        """Discard it: an upload has no name but the one that it gets when it is whole."""
        self.abort()
        return "nothing (S3 has no place for an unfinished upload)"

    def abort(self) -> None:
        """Leave nothing, unless it was committed; harmless a second time."""
        self._pool.shutdown(cancel_futures=True)  # a part that arrives later would stay
        upload, self._id = self._id, ""
        if upload:
            with contextlib.suppress(Exception):
                self._fs.call_s3("abort_multipart_upload", **self._where, UploadId=upload)


class RemotePart:
    """``NAME.part`` on a server; its own stream."""

    def __init__(self, url: str, force: bool) -> None:
        self._url, self._force = url, force
        self._fs, self._path = connect(url)
        self._part = self._path + ".part"
        if not force:
            _check_free(self._fs, self._path, url)
            _check_free(self._fs, self._part, url + ".part")
        self._file: Any = None
        self.length = 0

    def stream(self) -> RemotePart:
        with _writing(self._url):
            if self._force and self._fs.exists(self._part):
                self._fs.rm_file(self._part)
            if kind_of(self._url) == "ssh":
                self._file = self._open_private()
            else:
                self._file = self._fs.open(self._part, "wb")
        return self

    def _open_private(self) -> Any:
        """Open it by SFTP, for ourselves alone, before there is anything in it."""
        from fsspec.asyn import sync

        file = self._fs.open(self._part, "xb")
        sync(self._fs.loop, file._file.chmod, 0o600)  # sshfs has no way to it
        return file

    def write(self, data: bytes | memoryview) -> None:
        """Append *data*.

        Raises:
            OutputFailed: It could not be written.
        """
        self.length += len(data)
        with _writing(self._url):
            self._file.write(bytes(data))

    def flush(self) -> None:
        """Nothing: closing it does that."""

    def commit(self) -> int:
        """Give it its name: its size in bytes."""
        self._close()
        with _writing(self._url):
            if not self._force and self._fs.exists(self._path):
                raise _exists(self._url)
            self._fs.mv(self._part, self._path)
        self._part = ""
        return self.length

    def keep(self) -> str:
        """Leave it under its ``.part`` name: the name."""
        self._close()
        self._part = ""
        return f"{shown(self._url)}.part"

    def abort(self) -> None:
        """Leave nothing, unless it was committed or kept; harmless a second time."""
        with contextlib.suppress(OutputFailed):
            self._close()
        part, self._part = self._part, ""
        if part and self._file:
            with contextlib.suppress(Exception):
                self._fs.rm_file(part)

    def _close(self) -> None:
        if self._file:
            with _writing(self._url):
                self._file.close()
