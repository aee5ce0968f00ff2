"""What the cgroups of the target allow: how much memory, with the host, and whether it may run.

Reading a swapped page brings it back into the target's memory: too many of them get it killed.
See proc_meminfo(5), cgroups(7), Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple


class _Files(NamedTuple):
    """Where a memory cgroup tells what it may have and has; and of ``memory.stat``, what of that
    the kernel takes back before the limit hurts: files that nobody used of late."""

    limit: str
    usage: str
    cache: tuple[str, ...]


_V2 = _Files("memory.max", "memory.current", ("inactive_file", "slab_reclaimable"))
_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file",))


def headroom(pid: int) -> int:
    """Free bytes for process *pid*: the least of the host's and its memory cgroups'."""
    return min([_host(), *_cgroups(pid)])


def is_frozen(pid: int) -> bool:
    """Whether process *pid* is in a frozen cgroup (v2), where no thread of it runs."""
    with contextlib.suppress(OSError, KeyError):
        for line in _read(f"/proc/{pid}/cgroup").split("\n"):
            if line.startswith("0::"):
                events = _read(f"{_mounts()[_V2]}{line[3:]}/cgroup.events")
                return "frozen 1" in events.split("\n")
    return False


def _host() -> int:
    for line in _read("/proc/meminfo").split("\n"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _cgroups(pid: int) -> Iterator[int]:
    mounts = _mounts()
    groups = ""
    with contextlib.suppress(OSError):  # it has exited, or the kernel has no cgroups
        groups = _read(f"/proc/{pid}/cgroup")
    for line in groups.split("\n"):
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        files = _V1 if controllers else _V2
        mount = mounts.get(files)
        if not path or mount is None or (controllers and "memory" not in controllers.split(",")):
            continue
        # A limit holds for the whole tree below it, so each ancestor's counts.
        folder = mount + path.rstrip("/")
        while len(folder) >= len(mount) > 1:
            with contextlib.suppress(OSError, ValueError):  # "max", or not our cgroup namespace
                yield _free(folder, files)
            folder = os.path.dirname(folder)


def _free(folder: str, files: _Files) -> int:
    free = int(_read(f"{folder}/{files.limit}")) - int(_read(f"{folder}/{files.usage}"))
    for line in _read(f"{folder}/memory.stat").split("\n"):
        key, _, value = line.partition(" ")
        if key in files.cache:
            free += int(value)
    return free


def _mounts() -> dict[_Files, str]:
    """Where cgroup2 and the memory controller of cgroup v1 are mounted; proc_pid_mountinfo(5)."""
    found = {}
    for line in _read("/proc/self/mountinfo").split("\n"):
        fields, _, after = line.partition(" - ")
        kind, _, options = after.partition(" ")
        if kind == "cgroup2":
            found[_V2] = fields.split(" ")[4]
        elif kind == "cgroup" and "memory" in options.rpartition(" ")[2].split(","):
            found[_V1] = fields.split(" ")[4]
    return found


def _read(path: str) -> str:
    # Not pathlib: it would be a tenth of the start of `fastdump strings`. Names are bytes.
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return file.read()
