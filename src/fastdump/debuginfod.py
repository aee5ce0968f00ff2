"""Debug files of stripped modules, by build id, from the servers that DEBUGINFOD_URLS names.

By elfutils' debuginfod-find(1), which has the cache and the timeouts. What it brings is read as
any other ELF file is: whatever it holds, it does not make us fail.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess

from fastdump.addresses import short_name
from fastdump.symbols import Symbols

_FIND = "debuginfod-find"


class Debuginfod:
    """What the servers have. If they fail they are not asked again: each time may be a timeout."""

    def __init__(self) -> None:
        self._outage = "" if shutil.which(_FIND) else f"{_FIND} (elfutils) is not installed"
        self._lacking: dict[str, list[str]] = {}  # the modules, by reason

    @property
    def problems(self) -> list[str]:
        """Which debug files could not be had, and why: sentences."""
        return [
            f"no debug file of {', '.join(modules)}: {reason}"
            for reason, modules in self._lacking.items()
        ]

    def symbols(self, module: str, build_id: str) -> Symbols | None:
        """Those of the debug file of a module; None if it cannot be had."""
        found = self._outage or self._fetched(build_id)
        if isinstance(found, Symbols):
            return found
        self._lacking.setdefault(found, []).append(short_name(module))
        return None

    def _fetched(self, build_id: str) -> Symbols | str:
        """The symbols, or why there are none."""
        try:
            done = subprocess.run(
                [_FIND, "debuginfo", build_id],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env={**os.environ, "LC_ALL": "C"},
            )
            if done.returncode:
                return self._reason(os.fsdecode(done.stderr))
            with open(os.fsdecode(done.stdout).removesuffix("\n"), "rb") as file:
                found = Symbols(file)
        except OSError as error:
            return os.strerror(error.errno or 0)
        if not found.build_id or found.build_id.id != build_id:
            return "what came is not its debug file"
        return "what came has no symbols" if found.is_stripped else found

    def _reason(self, told: str) -> str:
        """Of the last line of what it tells, "Server query failed: " and the text of an errno."""
        reason = told.strip().rpartition("\n")[2].rpartition(": ")[2]
        if reason == os.strerror(errno.ENOENT):
            return "no server has it"
        if reason == os.strerror(errno.ENOSYS):
            reason = "DEBUGINFOD_URLS names no server"
        self._outage = reason or f"{_FIND} failed"
        return self._outage
