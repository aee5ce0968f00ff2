"""What an output's name stands for: standard output (``-``), a URL, a file, or a folder."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from fastdump.errors import UsageError, output_failed
from fastdump.output import (
    Output,
    PartFile,
    PartFolder,
    StandardOutput,
    check_free,
    uninterrupted,
)
from fastdump.url import is_url, local_path, shown

STANDARD_OUTPUT = "-"


def open_output(name: str, force: bool = False) -> Output:
    """One file.

    Raises:
        OutputFailed: It exists (and *force* is not given), or cannot be written.
        UsageError: Nothing can be written there.
    """
    if name == STANDARD_OUTPUT:
        return StandardOutput()
    if is_url(name):
        from fastdump.remote_output import open_remote_output

        return open_remote_output(name, force)
    return PartFile(Path(local_path(name)), force)


def open_folder(name: str, force: bool = False) -> PartFolder:
    """One folder.

    Raises:
        OutputFailed: As :func:`open_output`.
        UsageError: There are folders on this machine only.
    """
    if name == STANDARD_OUTPUT or is_url(name):
        raise UsageError(
            f"a folder cannot be streamed to {'standard output' if name == '-' else shown(name)}",
            "use --format core or lz4",
        )
    return PartFolder(Path(local_path(name)), force)


def check_output(name: str, force: bool) -> None:
    """Check what can be before there is anything to write: a server is asked later.

    Raises:
        OutputFailed: It exists (and *force* is not given).
        UsageError: It is a terminal.
    """
    if name == STANDARD_OUTPUT:
        if sys.stdout.isatty():
            raise UsageError("standard output is a terminal", "pipe it, or name a file")
    elif not is_url(name):
        check_free(Path(local_path(name)), force)


def write_output(name: str, content: bytes, force: bool) -> None:
    """Write one file: whole, or not at all.

    Raises:
        OutputFailed, UsageError: As :func:`open_output`.
    """
    with contextlib.ExitStack() as stack:
        with created(name):
            output = open_output(name, force)
            stack.callback(output.abort)  # does nothing once it is whole
        try:
            stream = output.stream()
            stream.write(content)
            stream.flush()
            output.commit()
        except OSError as error:
            raise output_failed(shown(name), error) from None


def created(name: str) -> contextlib.AbstractContextManager[None]:
    """Within it an output is opened, and remembered for its removal: signals wait meanwhile.

    Of a URL nothing is there yet, and its server may let us wait.
    """
    return contextlib.nullcontext() if is_url(name) else uninterrupted()
