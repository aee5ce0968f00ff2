"""What can go wrong, each with the exit code that it has everywhere and a hint.

The exit codes: 0 complete; 1 nothing found; 2 usage; 3 done, but with gaps that were not
expected; 4 target gone or changed; 5 no permission; 6 corrupt input; 7 output failed;
130 interrupted.
"""

from __future__ import annotations

import errno as _errno
import os

EXIT_COMPLETE = 0
EXIT_NOTHING = 1
EXIT_GAPS = 3
EXIT_INTERRUPTED = 130


class FastdumpError(Exception):
    """One line that says what happened; ``hint`` says what to try."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(FastdumpError):
    """What was asked for makes no sense, or not for this target."""

    exit_code = 2


class SourceGone(FastdumpError):
    """The target does not exist, exited, or called exec: its old memory is gone."""

    exit_code = 4


class NotPermitted(FastdumpError):
    """The kernel does not let us read this target, or a server this file."""

    exit_code = 5


class CorruptDump(FastdumpError):
    """The input is not what it should be: broken, cut off, or of a kind that cannot be read."""

    exit_code = 6


class OutputFailed(FastdumpError):
    """The output could not be written; nothing that looks whole is left."""

    exit_code = 7


class FaultError(FastdumpError):
    """The byte at ``address`` cannot be read, for the reason ``errno``."""

    exit_code = 3

    def __init__(self, address: int, errno: int, reason: str = "") -> None:
        super().__init__(f"cannot read at {address:#x}: {reason or os.strerror(errno)}")
        self.address = address
        self.errno = errno


class IncompleteWarning(UserWarning):
    """Memory that was asked for could not be read; says how much and why."""


class RuleWarning(UserWarning):
    """A rule of a selection names what there is not."""


def not_opened(path: str, error: OSError, hint: str = "") -> FastdumpError:
    """The one wording for an input that cannot be opened; *hint*: unless it is not permitted."""
    message = f"cannot read {path}: {error.strerror or error}"
    if isinstance(error, PermissionError):
        return NotPermitted(message, "be root, or the user that it belongs to")
    return UsageError(message, hint)


def input_failed(path: str, error: OSError) -> CorruptDump:
    """The one wording for an input that could be opened, but not be read."""
    return CorruptDump(f"cannot read {path}: {error.strerror or error}")


def unforeseen(error: OSError) -> FastdumpError:
    """For an error that has no wording of its own where it comes from."""
    kind: type[FastdumpError] = UsageError
    if isinstance(error, PermissionError):
        kind = NotPermitted
    elif isinstance(error, ProcessLookupError):
        kind = SourceGone
    name = "" if error.filename is None else f"{error.filename}: "
    return kind(f"{name}{error.strerror or error}")


def output_failed(path: str, error: OSError) -> OutputFailed:
    """The one wording for an output that failed, with what to try."""
    hints = {
        _errno.ENOSPC: "free some space, or choose another disk; dump --plan tells its need",
        _errno.EDQUOT: "the quota is used up: choose another disk",
        _errno.EFBIG: "the file size limit is too low (ulimit -f), or use --format lz4",
        _errno.EEXIST: "--force replaces it",
        _errno.EACCES: "choose a folder that you may write to",
        _errno.EROFS: "choose a disk that is not read-only",
        _errno.ENOENT: "create its folder first, or choose another",
        _errno.ELOOP: "the output may not be a symbolic link",
    }
    name = "standard output" if path == "-" else path
    message = f"cannot write {name}: {os.strerror(error.errno or 0)}"
    return OutputFailed(message, hints.get(error.errno or 0, ""))
