"""What the cgroups of the target allow: how much memory, with the host, and whether it may run.

Reading a swapped page brings it back into the target's memory: too many of them get it killed.
See proc_meminfo(5), cgroups(7), Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def headroom(pid: int) -> int:
    """Free bytes for process *pid*: the least of the host's and its memory cgroups'."""
    return min([_host(), *_cgroups(pid)])


def _host() -> int:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _cgroups(pid: int) -> Iterator[int]:
    mounts = _mounts()
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, limit, usage = mounts.get("cgroup2"), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            mount, limit = mounts.get("memory"), "memory.limit_in_bytes"
            usage = "memory.usage_in_bytes"
        else:
            continue
        if mount is None:
            continue
        # A limit holds for the whole tree below it, so each ancestor's counts.
        folder = mount + path.rstrip("/")
        while len(folder) >= len(mount) > 1:
            with contextlib.suppress(OSError, ValueError):  # "max", or not our cgroup namespace
                yield int(_read(f"{folder}/{limit}")) - int(_read(f"{folder}/{usage}"))
            folder = os.path.dirname(folder)


def _mounts() -> dict[str, str]:
    """Where cgroup2 and the memory controller of cgroup v1 are mounted; proc_pid_mountinfo(5)."""
    found = {}
    for line in _read("/proc/self/mountinfo").splitlines():
        fields, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            found["cgroup2"] = fields.split(" ")[4]
        elif kind == "cgroup" and "memory" in options.rsplit(" ", 1)[-1].split(","):
            found["memory"] = fields.split(" ")[4]
    return found


def _read(path: str) -> str:
    with open(path) as file:  # not pathlib: it would be a tenth of the start of `fastdump strings`
        return file.read()


def is_frozen(pid: int) -> bool:
    """Whether process *pid* is in a frozen cgroup (v2), where no thread of it runs."""
    with contextlib.suppress(OSError, KeyError):
        for line in _read(f"/proc/{pid}/cgroup").splitlines():
            if line.startswith("0::"):
                events = _read(f"{_mounts()['cgroup2']}{line[3:]}/cgroup.events")
                return "frozen 1" in events.splitlines()
    return False
