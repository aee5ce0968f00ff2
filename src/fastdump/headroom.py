"""How much memory the host and the target's cgroup can still give.

Reading a swapped page brings it back into the target's memory: too many of them get it killed.
See proc_meminfo(5), cgroups(7), Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def headroom(pid: int) -> int:
    """Free bytes for process *pid*: the least of the host's and its memory cgroups'."""
    return min([_host(), *_cgroups(pid)])


def _host() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _cgroups(pid: int) -> Iterator[int]:
    mounts = _mounts()
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
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
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mount):
                break
            try:
                yield int((folder / limit).read_text()) - int((folder / usage).read_text())
            except (OSError, ValueError):  # "max", or not our cgroup namespace
                continue


def _mounts() -> dict[str, Path]:
    """Where cgroup2 and the memory controller of cgroup v1 are mounted; proc_pid_mountinfo(5)."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            found["cgroup2"] = Path(fields.split(" ")[4])
        elif kind == "cgroup" and "memory" in options.rsplit(" ", 1)[-1].split(","):
            found["memory"] = Path(fields.split(" ")[4])
    return found
