"""A live process, by its pid: identity, regions, descriptors.

Consistency: none. The target runs on while it is read, so two bytes may be of two moments.
Page visibility: only pages that its page tables hold (present or swapped) are read from the
process; what is absent is known to be zero, or is read from the mapped file behind it. No
page of the target is touched that it has not touched itself, so it does not grow.

See proc(5), process_vm_readv(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fastdump import _native
from fastdump.errors import FaultError, NotPermitted, SourceGone, UsageError
from fastdump.region import Range, Region, ThreadStack, parse_maps
from fastdump.text import decoded, encoded

_PF_EXITING, _PF_KTHREAD = 0x4, 0x00200000  # include/linux/sched.h
_UFFD_FEATURE_EVENT_FORK = 2  # linux/userfaultfd.h
_CAP_SYS_PTRACE = 19  # linux/capability.h
_USER_NS_INIT_INO = 0xEFFFFFFD  # linux/nsfs.h

_OTHER_NAMESPACE = "it lives in another user namespace"
# What helps where neither root nor a capability does.
_HELP = {
    _OTHER_NAMESPACE: "run it outside: as root of the host, or as the user who made the namespace",
    "Yama allows it to nobody only (kernel.yama.ptrace_scope is 3)": "a reboot: 3 cannot be taken "
    "back",
}


class Growth(NamedTuple):
    """What a process costs its host, in bytes: VmRSS, VmPTE and VmSwap of proc_pid_status(5)."""

    rss: int
    pte: int
    swap: int


class LiveProcess:
    """The memory of process *pid* as it is now. A context manager; threads may share it.

    Attributes:
        tid: A thread that has its memory: *pid*, unless that has exited.
        origins: Start addresses of regions that are read from another process: see
            ``snapshot.py``.
        is_copy: It is the copy of a target that runs on: see ``snapshot.py``.

    Raises:
        SourceGone: There is no such process, or it has exited.
        NotPermitted: The kernel does not let us read it; the message says why.
        UsageError: It is a kernel thread.
    """

    origins: frozenset[int] = frozenset()
    is_copy = False

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._closing = contextlib.ExitStack()
        try:
            self._open()
        except BaseException:
            self._closing.close()
            raise

    def _open(self) -> None:
        pid = self.pid
        try:
            fields = _stat_fields(f"/proc/{pid}")
            leader = _status(f"/proc/{pid}")["Tgid"]
        except OSError as error:
            _check_ours(error)
            if _is_hidden(pid):
                raise NotPermitted(
                    f"not permitted to see process {pid}: /proc is mounted with hidepid",
                    "run it as root",
                ) from None
            raise SourceGone(f"no process {pid}", "ps -e lists the processes") from None
        if leader != str(pid):
            raise UsageError(f"{pid} is a thread, not a process", f"its process is {leader}")
        self.start_time = int(fields[19])  # field 22: against the reuse of the pid
        if int(fields[6]) & _PF_KTHREAD:
            raise UsageError(f"process {pid} is a kernel thread: it has no memory of its own")
        # A leader that called pthread_exit has no memory of its own; another thread does.
        self._open_memory(self._living_thread() if fields[0] in "ZX" else pid)

    def _open_memory(self, tid: int, origin: _native.Memory | None = None) -> None:
        self.tid, self._proc = tid, f"/proc/{tid}"
        try:
            mem = os.open(f"{self._proc}/mem", os.O_RDONLY | os.O_CLOEXEC)
            self._closing.callback(os.close, mem)
            pagemap = os.open(f"{self._proc}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._closing.callback(os.close, pagemap)
            self._start_stack = int(_stat_fields(self._proc)[25])
            self.memory = _native.Memory(tid, mem, pagemap, origin)
        except (PermissionError, _native.MemoryGone) as error:
            raise self._refused(error) from None
        except (FileNotFoundError, ProcessLookupError):
            raise self.gone() from None

    def __enter__(self) -> LiveProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    # Identity

    @contextlib.contextmanager
    def _or_gone(self) -> Iterator[None]:
        """The files of ``/proc/PID`` vanish with the process."""
        try:
            yield
        except OSError as error:
            _check_ours(error)
            raise self.gone() from None

    def gone(self) -> SourceGone:
        """The error for a target that exited or called exec, by what is there now."""
        try:
            fields = _stat_fields(f"/proc/{self.pid}")
            same = int(fields[19]) == self.start_time and fields[0] not in "ZX"
            same = same and not int(fields[6]) & _PF_EXITING  # its memory goes before its state
        except OSError as error:
            _check_ours(error)
            same = False
        if same:
            return SourceGone(
                f"process {self.pid} called exec: the memory it had is gone",
                "run the command again to see the new program",
            )
        return SourceGone(f"process {self.pid} has exited")

    def check(self) -> None:
        """Raise SourceGone unless the address space opened is still this process's.

        /proc/PID/mem tells an exit or exec, unless another process shares the memory
        (vfork, CLONE_VM); then the place of the stack, random for each exec, tells.
        """
        try:
            same = int(_stat_fields(self._proc)[25]) == self._start_stack
        except OSError as error:
            _check_ours(error)
            same = False
        if not same or not self.memory.alive:
            raise self.gone()

    def _living_thread(self) -> int:
        try:
            for name in os.listdir(f"/proc/{self.pid}/task"):
                if _stat_fields(f"/proc/{self.pid}/task/{name}")[0] not in "ZX":
                    return int(name)
        except OSError:
            pass
        raise SourceGone(f"process {self.pid} has exited (it waits for its parent to reap it)")

    def _refused(self, error: Exception) -> NotPermitted | SourceGone:
        try:
            status = _status(self._proc)
            owner = os.stat(f"{self._proc}/mem").st_uid  # root's if it is not dumpable
        except OSError:
            return self.gone()
        if isinstance(error, _native.MemoryGone):
            return self.gone()
        reason = _why(self.pid, status, owner)
        return NotPermitted(
            f"not permitted to read process {self.pid}: {reason}", _hint(status, reason)
        )

    @property
    def identity(self) -> dict[str, object]:
        """Who the target is: for the manifest."""
        with self._or_gone():
            fields = _stat_fields(f"/proc/{self.pid}")
            status = _status(f"/proc/{self.pid}")
            comm, exe, cmdline = self.comm, self.exe, self.cmdline
        boot = next(
            int(line.split()[1]) for line in _read("/proc/stat").split("\n") if "btime" in line
        )
        return {
            "pid": self.pid,
            "ppid": int(fields[1]),
            "comm": comm,
            "exe": exe,
            "cmdline": cmdline,
            "uid": int(status["Uid"].split()[0]),
            "gid": int(status["Gid"].split()[0]),
            "threads": int(status["Threads"]),
            "start_time": boot + self.start_time / os.sysconf("SC_CLK_TCK"),
        }

    @property
    def comm(self) -> str:
        with self._or_gone():
            return _read(f"/proc/{self.pid}/comm").rstrip("\n")

    @property
    def exe(self) -> str:
        """The executable's path as the kernel gives it, empty where it may not be asked."""
        try:
            return decoded(os.readlink(os.fsencode(f"{self._proc}/exe")))
        except OSError:
            return ""

    @property
    def cmdline(self) -> list[str]:
        with self._or_gone():
            return _read(f"{self._proc}/cmdline").rstrip("\0").split("\0")

    def stat_fields(self) -> list[str]:
        """proc_pid_stat(5) from field 3 (state) on."""
        with self._or_gone():
            return _stat_fields(self._proc)

    def status(self) -> dict[str, str]:
        """proc_pid_status(5)."""
        with self._or_gone():
            return _status(self._proc)

    def auxv(self) -> bytes:
        """The auxiliary vector, see getauxval(3)."""
        with self._or_gone(), open(f"{self._proc}/auxv", "rb") as file:
            return file.read()

    def residency(self, regions: Sequence[Region]) -> list[_native.Residency]:
        """What the page tables hold of each region; zeros for pages of the kernel.

        Raises:
            SourceGone: It exited or called exec.
        """
        ranges = [
            Range(r.start, r.end) if r.end < 1 << 63 else Range(0, 0)  # [vsyscall]
            for r in regions
        ]
        try:
            return self.memory.residency(ranges)
        except _native.MemoryGone:
            raise self.gone() from None

    def resident(self, regions: Sequence[Region], found: Sequence[_native.Residency]) -> list[int]:
        """The bytes of each region in the RAM of the target, of which *found* is the residency.

        Raises:
            SourceGone: It exited or called exec.
        """
        return [held.present for held in found]

    def growth(self) -> Growth:
        """What the target costs its host now."""
        status = self.status()
        return Growth(*(_bytes(status, key) for key in ("VmRSS", "VmPTE", "VmSwap")))

    @property
    def is_swapped(self) -> bool:
        """Whether any of its private memory is swapped out, but for some pages a CPU: VmSwap."""
        with self._or_gone():
            return _bytes(_status(self._proc), "VmSwap") > 0

    # Regions

    def regions(self) -> list[Region]:
        """The lines of ``/proc/PID/maps`` as they are now, in address order."""
        try:
            regions = parse_maps(_read(f"{self._proc}/maps"))
        except OSError as error:
            _check_ours(error)
            regions = []
        if not regions:  # the maps of a dead process are empty
            raise self.gone()
        return [self._exact(region) if "\n" in region.path else region for region in regions]

    def _exact(self, region: Region) -> Region:
        """Its path by ``map_files``: maps writes a newline as ``\\012``, and a backslash plain."""
        link = f"{self._proc}/map_files/{region.start:x}-{region.end:x}"
        with contextlib.suppress(OSError):
            return region._replace(path=decoded(os.readlink(os.fsencode(link))))
        return region

    def open_mapped(self, region: Region) -> int:
        """A descriptor of the file that *region* maps; the caller closes it.

        ``map_files`` reaches deleted and replaced files and those of other mount namespaces
        (it needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE); else the target's own root, and
        the inode and file system must be the same. Never the path on this host.

        Raises:
            OSError: It cannot be opened, or another file has its name now.
        """
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        link = f"{self._proc}/map_files/{region.start:x}-{region.end:x}"
        try:
            fd = os.open(link, flags)
        except OSError as error:
            _check_ours(error)
            fd = os.open(encoded(f"{self._proc}/root{region.path}"), flags | os.O_NOFOLLOW)
            if not self._is_mapped(fd, region):
                os.close(fd)
                raise OSError(errno.ESTALE, "another file has this name now") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # nothing but a plain read may follow
            os.close(fd)
            raise OSError(errno.ENODEV, "not a regular file")
        return fd

    def _is_mapped(self, fd: int, region: Region) -> bool:
        """Whether an open file is the one of *region*, by its inode and file system.

        maps has the device of the file system, and so has mountinfo; stat(2) may have another one
        on btrfs and overlayfs. Of overlays maps had that of a layer before Linux 6.8.
        """
        found = os.fstat(fd)
        if found.st_ino != region.inode:
            return False
        if _device(os.major(found.st_dev), os.minor(found.st_dev)) == region.dev:
            return True
        with contextlib.suppress(OSError):
            mount = _fields(f"/proc/self/fdinfo/{fd}").get("mnt_id")
            for line in _read(f"{self._proc}/mountinfo").split("\n"):
                if line.startswith(f"{mount} "):
                    device, kind = line.split(" ")[2], line.partition(" - ")[2].split(" ")[0]
                    return kind == "overlay" or _device(*map(int, device.split(":"))) == region.dev
        return False

    def thread_stacks(self) -> list[ThreadStack]:
        """Those of each thread but the first, where the kernel tells.

        Of a thread that waits in the kernel, ``syscall`` has the stack pointer. The robust futex
        list lies in glibc's ``struct pthread``.
        """
        found = []
        try:
            threads = [int(name) for name in os.listdir(f"/proc/{self.pid}/task")]
        except OSError:
            return []
        for tid in threads:
            if tid == self.pid:
                continue
            own = _native.robust_list(tid)
            pointer = 0
            with contextlib.suppress(OSError, ValueError, IndexError):
                pointer = int(_read(f"/proc/{self.pid}/task/{tid}/syscall").split()[-2], 16)
            found.append(ThreadStack(pointer or own, own))
        return [stack for stack in found if stack.pointer]

    def userfault_ranges(self) -> set[int]:
        """The start addresses of regions where a missing page would block a reader for ever.

        Only smaps tells them, and smaps is slow on large heaps, so it is read only when the
        target has a userfaultfd open (userfaultfd(2), VmFlags ``um`` and ``uw``).
        """
        return self.flagged({"um", "uw", "ui"}) if self._userfaultfds() else set()

    @property
    def answers_forks(self) -> bool:
        """Whether a fork would wait until it has read of it (userfaultfd(2), EVENT_FORK)."""
        for name in self._userfaultfds():
            with contextlib.suppress(OSError, IndexError, ValueError):
                api = _read(f"{self._proc}/fdinfo/{name}").partition("API:")[2].split(":")
                if not int(api[1], 16) & _UFFD_FEATURE_EVENT_FORK:
                    continue
            return True
        return False

    def _userfaultfds(self) -> list[str]:
        """The numbers of its userfaultfds; none where that may not be asked."""
        found = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"{self._proc}/fd"):
                with contextlib.suppress(OSError):  # it was closed meanwhile
                    if os.readlink(entry.path) == "anon_inode:[userfaultfd]":
                        found.append(entry.name)
        return found

    def flagged(self, flags: set[str]) -> set[int]:
        """The start addresses of regions with any of these VmFlags of proc_pid_smaps(5)."""
        found: set[int] = set()
        start = 0
        with self._or_gone():
            smaps = _read(f"{self._proc}/smaps")
        for line in smaps.split("\n"):
            head = line.split(" ", 1)[0]
            if "-" in head and not head.endswith(":"):
                start = int(head.partition("-")[0], 16)
            elif head == "VmFlags:" and flags & set(line.split()):
                found.add(start)
        return found

    # Source

    def read_into(self, address: int, buffer: bytearray | memoryview, flags: int = 0) -> int:
        """Read 1 to ``len(buffer)`` bytes at *address*.

        Raises:
            FaultError: The first byte is unreadable.
            SourceGone: The target exited or called exec.
        """
        try:
            return self.memory.read_into(address, buffer, flags)
        except _native.MemoryGone:
            raise self.gone() from None
        except OSError as error:
            raise FaultError(address, error.errno or 0) from None


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process, which /proc does not show (hidepid, see proc(5))."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # what may be signalled is not hidden
        return True
    except (OSError, OverflowError):
        pass
    return False


def _check_ours(error: OSError) -> None:
    """Raise what is said of us, who have too many files open, and not of the target."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "raise their limit (ulimit -n): each mapped file that is read takes one"
        raise UsageError(f"cannot open {error.filename}: {error.strerror}", hint) from None


def _read(path: str) -> str:
    # Names and paths are bytes to the kernel; surrogates keep those that are no UTF-8. Not a text
    # file: to make one takes longer than to read stat, and every walk ends with that.
    with open(path, "rb", buffering=0) as file:
        return decoded(file.read())


def _stat_fields(proc: str) -> list[str]:
    """proc_pid_stat(5) from field 3 on: field 2, the name, may hold spaces and brackets."""
    return _read(f"{proc}/stat").rpartition(")")[2].split()


def _status(proc: str) -> dict[str, str]:
    return _fields(f"{proc}/status")


def _fields(path: str) -> dict[str, str]:
    """Lines of a key, a colon and a value."""
    lines = (line.partition(":") for line in _read(path).split("\n"))
    return {key: value.strip() for key, _, value in lines}


def _device(major: int, minor: int) -> str:
    """As maps has it."""
    return f"{major:02x}:{minor:02x}"


def _bytes(status: dict[str, str], key: str) -> int:
    return int(status.get(key, "0 kB").split()[0]) * 1024


def _capabilities(status: dict[str, str], key: str = "CapEff") -> int:
    return int(status.get(key, "0"), 16)


def _why(pid: int, status: dict[str, str], owner: int) -> str:
    """Why ptrace(2)'s "ptrace access mode checking" refuses us, most specific first."""
    ours = _status("/proc/self")
    uid = os.geteuid()
    target_uids = {int(u) for u in status["Uid"].split()[:3]}
    if target_uids != {uid}:
        their_user = status["Uid"].split()[0]
        confined = os.stat("/proc/self/ns/user").st_ino != _USER_NS_INIT_INO
        powerful = _capabilities(ours) >> _CAP_SYS_PTRACE & 1
        if (confined or powerful) and not _same_user_namespace(pid):
            return _OTHER_NAMESPACE
        return f"it belongs to user {their_user}, you are user {uid}"
    if not _same_user_namespace(pid):
        return _OTHER_NAMESPACE
    if owner != uid:
        return "it is not dumpable (it changed its identity, or asked so with prctl)"
    try:
        scope = int(_read("/proc/sys/kernel/yama/ptrace_scope"))
    except OSError:
        scope = 0
    if scope:
        whom = {1: "its own parents", 2: "those with CAP_SYS_PTRACE"}.get(scope, "nobody")
        return f"Yama allows it to {whom} only (kernel.yama.ptrace_scope is {scope})"
    if _capabilities(status, "CapPrm") & ~_capabilities(ours):
        return "it has capabilities that you have not"
    tracer = status.get("TracerPid", "0")
    if tracer != "0":
        return f"it is traced by process {tracer}"
    return "a security module or a seccomp filter forbids it"


def _hint(status: dict[str, str], reason: str) -> str:
    if reason in _HELP:
        return _HELP[reason]
    tracer = status.get("TracerPid", "0")
    hint = "run it as root, or give it CAP_SYS_PTRACE (in a container: --cap-add SYS_PTRACE)"
    return hint + (f"; it is traced by process {tracer} already" if tracer != "0" else "")


def _same_user_namespace(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
    except OSError:  # needs the very permission that is lacking; everybody may read the map
        try:
            return _read(f"/proc/{pid}/uid_map") == _read("/proc/self/uid_map")
        except OSError:
            return True  # no evidence
