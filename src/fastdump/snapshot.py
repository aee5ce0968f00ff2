"""Snapshots: a live process stopped for a moment, so that what is read of it is of one moment.

Consistency: of the pauses, ``none`` stops nothing. ``freeze`` stops all threads until all is read:
what is read is of one moment, but for shared memory that other processes write. ``fork`` stops them
for milliseconds: they run on, and a copy of their memory by fork(2), which never runs, is read.
Not in the copy are shared mappings, MADV_DONTFORK and MADV_WIPEONFORK: see
:meth:`Snapshot.unfrozen`.

All of ptrace(2) is done by a guardian, a process of its own, in C (``csrc/snapshot.c``): it undoes
everything if this process dies.
"""

from __future__ import annotations

import bisect
import contextlib
import mmap
import os
import platform
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from fastdump import _native
from fastdump._native import Slice, address_of, ffi, lib
from fastdump.errors import NotPermitted, SourceGone, UsageError
from fastdump.fork_cost import fork_cost
from fastdump.headroom import is_frozen
from fastdump.process import Growth, LiveProcess
from fastdump.region import Region, ThreadStack
from fastdump.text import size

NONE, FREEZE, FORK = "none", "freeze", "fork"
PAUSES = (NONE, FREEZE, FORK, "fork!")

MOST_UNASKED = 2.0
LATE = "read after the pause had ended"

NT_PRSTATUS, NT_PRFPREG, NT_SIGINFO = 1, 2, 0x53494749  # include/uapi/linux/elf.h
_REGSETS = {
    "x86_64": (NT_PRSTATUS, NT_PRFPREG, 0x202, 0x204),  # NT_X86_XSTATE, _SHSTK
    # NT_ARM_TLS, _HW_BREAK, _HW_WATCH, _SYSTEM_CALL, _SVE, _PAC_MASK, _TAGGED_ADDR_CTRL, _PAC_...
    "aarch64": (NT_PRSTATUS, NT_PRFPREG, *range(0x401, 0x407), 0x409, 0x40A),
}
# The general registers of a thread, and where in them the stack pointer is.
_GENERAL = {"x86_64": (27 * 8, 19 * 8), "aarch64": (34 * 8, 31 * 8)}
# The set of registers that the thread pointer is in, and where: fs_base, tpidr_el0.
_THREAD_POINTER = {"x86_64": (NT_PRSTATUS, 21 * 8), "aarch64": (0x401, 0)}
# A system call, best with a return behind it: with that the copy, should it ever run, ends.
_SYSTEM_CALLS = {
    "x86_64": (b"\x0f\x05\xc3", b"\x0f\x05"),
    "aarch64": (b"\x01\0\0\xd4\xc0\x03\x5f\xd6", b"\x01\0\0\xd4"),
}
_AREA_A_THREAD = 16 << 10  # AMX has the most registers: 11 KiB
_WALL = 0x40000000  # __WALL of wait(2)
_STEPS = {
    lib.FASTDUMP_STEP_TASK: "no thread of it can run a system call for us",
    lib.FASTDUMP_STEP_SECCOMP: "its seccomp filter cannot be suspended (that needs CAP_SYS_ADMIN)",
    lib.FASTDUMP_STEP_CLONE: "clone failed in it",
}


class Registers(NamedTuple):
    """A thread as it was stopped: ``regsets`` by their note type, in the order of the notes."""

    tid: int
    blocked: int
    regsets: dict[int, bytes]

    @property
    def stack_pointer(self) -> int:
        """0 if it has no registers."""
        general = self.regsets.get(NT_PRSTATUS)
        return int(struct.unpack_from("<Q", general, _GENERAL[_MACHINE][1])[0]) if general else 0

    @property
    def thread_pointer(self) -> int:
        """Of thread-local storage, as the ELF specification of it calls it; 0 if not known."""
        kind, at = _THREAD_POINTER[_MACHINE]
        found = self.regsets.get(kind)
        return int(struct.unpack_from("<Q", found, at)[0]) if found else 0


_MACHINE = platform.machine()


class Pause(NamedTuple):
    """What a pause came to. Seconds: ``stop`` until all threads were stopped and their registers
    read, ``fork`` for the fork alone, ``total`` until all ran again (0 while they do not).

    ``why`` tells why it is not what was asked for.
    """

    kind: str
    asked: str
    why: str = ""
    stop: float = 0.0
    fork: float = 0.0
    total: float = 0.0


class Unfrozen(NamedTuple):
    """A range of which the bytes are not of the moment of the snapshot, and why."""

    start: int
    end: int
    reason: str


class _Refused(Exception):
    """The pause cannot be; the text says why."""


class Snapshot:
    """A pause of *target*, from now on; leaving the ``with`` block ends it.

    Attributes:
        process: What is to be read: the target, or the copy.
        pause: How it was stopped.
        threads: Its registers; empty where it was not stopped.
        ended_early: Whether a freeze ended by itself; known once it is released.

    Args:
        pause: One of PAUSES; None for what is best: a fork, else a freeze, else none.
        max_pause: Seconds after which a freeze ends by itself: what is read later is not frozen.
            A fork that would take longer is not tried. None: a freeze that is asked for has no
            limit, one in place of a fork MOST_UNASKED seconds.
        check_memory: Do not fork where the memory it may take is not free.

    Raises:
        NotPermitted: It cannot be stopped, but was to be.
        UsageError: ``fork!``, and it cannot be forked.
        SourceGone: The target exited or called exec.
    """

    def __init__(
        self,
        target: LiveProcess,
        pause: str | None = NONE,
        *,
        max_pause: float | None = None,
        check_memory: bool = True,
    ) -> None:
        self.process = target
        self.threads: list[Registers] = []
        self._late: list[Unfrozen] = []
        self.ended_early = False
        self.pause = Pause(NONE, pause or FORK)
        self._guardian: _Guardian | None = None
        self._closing = contextlib.ExitStack()
        try:
            if pause != NONE:
                self._take(target, pause, max_pause, check_memory)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._closing.close()

    def _take(
        self, target: LiveProcess, pause: str | None, max_pause: float | None, check_memory: bool
    ) -> None:
        asked, why, code = pause or FORK, "", 0
        kind = lib.FASTDUMP_FREEZE
        ourselves = target.pid == os.getpid()
        if ourselves and asked == FREEZE:
            raise UsageError("a process cannot freeze itself", "--pause fork can be")
        facts, before = _Facts.of(target), target.regions()
        if asked != FREEZE:
            why = _no_fork(target, max_pause, check_memory)
            if pause is None and _MACHINE != "x86_64":
                why = f"it has to be asked for on {_MACHINE}: it was not tried there yet"
            if why and asked == "fork!":
                raise _cannot_fork(target, why)
            if why and ourselves:
                self.pause = Pause(NONE, asked, why)
                return
            if not why:
                only = asked == "fork!" or ourselves
                kind = lib.FASTDUMP_FORK_ONLY if only else lib.FASTDUMP_FORK
                code = _system_call(target, before)
        if asked != FREEZE and max_pause is None:
            max_pause = MOST_UNASKED  # of a freeze in place of a fork, which nobody has asked for
        try:
            guardian = self._guardian = _Guardian.start(target, kind, code, max_pause)
        except _Refused as error:
            if pause is not None:
                raise NotPermitted(
                    f"process {target.pid} cannot be stopped: {error}",
                    "--pause none does not stop it",
                ) from None
            self.pause = Pause(NONE, asked, f"it cannot be stopped: {error}")
            return
        target.check()
        if kind != lib.FASTDUMP_FREEZE and not guardian.child:
            why = guardian.failure
            if asked == "fork!":
                raise _cannot_fork(target, why)
            if ourselves:
                self.release()
                self.pause = Pause(NONE, asked, why)
                return
        self.threads = guardian.registers()
        self.pause = Pause(FORK if guardian.child else FREEZE, asked, why)
        if guardian.child:
            self.process = _Copy(target, guardian.child, facts, before, self.threads)
            self._closing.callback(self.process.__exit__)

    @property
    def is_over(self) -> bool:
        """Whether a freeze has ended by itself, so far: what is read from now on is late."""
        guardian = self._guardian
        return bool(guardian and self.pause.kind == FREEZE and guardian.released)

    def was_read(self, slices: Iterable[Slice]) -> None:
        """To be called when *slices* have been read, by any thread: they may be late."""
        if self.is_over:
            self._late += [Unfrozen(s.address, s.address + s.length, LATE) for s in slices]

    def unfrozen(self, regions: Iterable[Region]) -> list[Unfrozen]:
        """What of *regions* is not of the moment of the pause, in address order.

        Memory that other processes may write; what a fork does not copy; and of a freeze what was
        read after it had ended.
        """
        if self.pause.kind == NONE:
            return []
        reasons = self.process.reasons if isinstance(self.process, _Copy) else {}
        found = [
            Unfrozen(r.start, r.end, reasons.get(r.start, "shared"))
            for r in regions
            if r.start in reasons or not r.private
        ]
        return sorted(found + self._late)

    def as_dict(self) -> dict[str, object]:
        """For the manifest and the report."""
        pause = self.pause
        without = [t.tid for t in self.threads if not t.regsets]
        return {
            "kind": pause.kind,
            "asked": pause.asked,
            "why": pause.why,
            "threads": len(self.threads),
            "without_registers": without,
            "seconds": {
                "stop": round(pause.stop, 6),
                "fork": round(pause.fork, 6),
                "total": round(pause.total, 6),
            },
        }

    def release(self) -> None:
        """End the pause, and remove the copy; :attr:`pause` has its times then."""
        self.ended_early = self.ended_early or self.is_over
        guardian, self._guardian = self._guardian, None
        if guardian:
            ended_well = guardian.end()
            why = self.pause.why
            if not ended_well and self.pause.kind == FREEZE:
                why = "the guardian was killed: it ran on, nobody knows from when on"
            if guardian.zombie:
                why = "a dead copy is left: the target could not be made to wait for it"
            self.pause = Pause(self.pause.kind, self.pause.asked, why, *guardian.seconds)


class _Facts(NamedTuple):
    """What /proc tells of a process before it is stopped: it may be gone when it is asked for."""

    identity: dict[str, object]
    stat: list[str]
    status: dict[str, str]

    @classmethod
    def of(cls, process: LiveProcess) -> _Facts:
        return cls(process.identity, process.stat_fields(), process.status())


class _Copy(LiveProcess):
    """The copy of *target* by fork: its memory. All else is the target's, as it was.

    Attributes:
        reasons: By their start, why regions are not of the moment of the fork.
    """

    is_copy = True

    def __init__(
        self,
        target: LiveProcess,
        tid: int,
        facts: _Facts,
        before: Sequence[Region],
        threads: Sequence[Registers],
    ) -> None:
        self._target, self._child, self._facts, self._threads = target, tid, facts, threads
        super().__init__(target.pid)
        self.reasons: dict[int, str] = {}
        copied = super().regions()
        self._regions = copied + self._not_copied(copied, before)
        self._regions.sort()
        self._find_cleared(copied)
        self.origins = frozenset(self.reasons)

    def _open(self) -> None:
        self.start_time = self._target.start_time
        self._open_memory(self._child, self._target.memory)

    def _not_copied(self, copied: Sequence[Region], before: Sequence[Region]) -> list[Region]:
        """The target's regions before and after the fork that the copy has not: MADV_DONTFORK."""
        starts = [r.start for r in copied]
        try:
            after = set(self._target.regions())
            self._target.check()
        except SourceGone:  # they are lost, which is to be told
            after = set(before)
        found = []
        for region in before:
            index = bisect.bisect_right(starts, region.start) - 1
            if region in after and (index < 0 or copied[index].end <= region.start):
                self.reasons[region.start] = "not copied by fork (MADV_DONTFORK)"
                found.append(region)
        return found

    def _find_cleared(self, copied: Sequence[Region]) -> None:
        """MADV_WIPEONFORK: the copy has nothing of a region that the target holds something of."""
        plain = [r for r in copied if r.private and not r.has_file and r.end < 1 << 63]
        empty = [
            r
            for r, held in zip(plain, self.residency(plain), strict=True)
            if not any(held) and r.readable
        ]
        with contextlib.suppress(SourceGone):  # then nobody knows what it held
            held = self._target.residency(empty)
            empty = [r for r, found in zip(empty, held, strict=True) if any(found)]
        # The kernel tells it in smaps only, which is slow where much is resident.
        cleared = self.flagged({"wf"}) if empty else set()
        for region in empty:
            if region.start in cleared:
                self.reasons[region.start] = "cleared by fork (MADV_WIPEONFORK)"

    def gone(self) -> SourceGone:
        return SourceGone(
            f"the copy of process {self.pid} was killed",
            "if there was no memory for it, --pause freeze needs none",
        )

    @property
    def identity(self) -> dict[str, object]:
        return self._facts.identity

    @property
    def comm(self) -> str:
        return str(self._facts.identity["comm"])

    def stat_fields(self) -> list[str]:
        return self._facts.stat

    def status(self) -> dict[str, str]:
        return self._facts.status

    def growth(self) -> Growth:
        with contextlib.suppress(SourceGone):
            return self._target.growth()
        return super().growth()

    @property
    def is_swapped(self) -> bool:
        with contextlib.suppress(SourceGone):
            if self._target.is_swapped:
                return True
        return super().is_swapped

    def regions(self) -> list[Region]:
        return list(self._regions)

    def residency(self, regions: Sequence[Region]) -> list[_native.Residency]:
        found = super().residency(regions)
        ours = [i for i, r in enumerate(regions) if r.start in self.origins]
        with contextlib.suppress(SourceGone):
            theirs = self._target.residency([regions[i] for i in ours])
            for i, held in zip(ours, theirs, strict=True):
                found[i] = held
        return found

    def resident(self, regions: Sequence[Region], found: Sequence[_native.Residency]) -> list[int]:
        """That of the target where fork(2) copies no page tables: of files and shared memory."""
        files = [i for i, region in enumerate(regions) if region.has_file]
        present = super().resident(regions, found)
        with contextlib.suppress(SourceGone):
            theirs = self._target.residency([regions[i] for i in files])
            for i, held in zip(files, theirs, strict=True):
                present[i] = max(present[i], held.present)
        return present

    def open_mapped(self, region: Region) -> int:
        if region.start in self.origins:
            return self._target.open_mapped(region)
        return super().open_mapped(region)

    def thread_stacks(self) -> list[ThreadStack]:
        return [
            ThreadStack(t.stack_pointer, t.thread_pointer)
            for t in self._threads
            if t.tid != self.pid and t.stack_pointer
        ]

    def userfault_ranges(self) -> set[int]:
        return super().userfault_ranges() | self.origins


class _Guardian:
    """The guardian, and the memory shared with it.

    Attributes:
        child: The copy; 0 if the target is frozen.
        failure: Why there is no copy.
    """

    @classmethod
    def start(cls, target: LiveProcess, kind: int, code: int, max_pause: float | None) -> _Guardian:
        """Start one, and wait until it has stopped the target, or copied it.

        Raises:
            _Refused: It cannot be stopped.
            SourceGone: It has exited.
        """
        threads = int(target.status()["Threads"])
        while True:  # until there was room for all of its threads
            threads = 2 * threads + 256
            guardian = cls(target, kind, code, max_pause, threads)
            failed = guardian.stop_error
            if not failed:
                return guardian
            guardian.end()
            if failed == 3:  # ESRCH
                raise target.gone()
            if failed != 28:  # ENOSPC
                raise _Refused(_why_not(target, failed))

    def __init__(
        self, target: LiveProcess, kind: int, code: int, max_pause: float | None, threads: int
    ) -> None:
        import socket  # 3 ms, for those who pause

        head = ffi.sizeof("struct fastdump_guard")
        table = threads * ffi.sizeof("struct fastdump_thread")
        self._area = mmap.mmap(-1, head + table + threads * _AREA_A_THREAD)
        at = address_of(self._area)
        self._registers = memoryview(self._area)[head + table :]
        guard = self._guard = ffi.cast("struct fastdump_guard *", at)
        guard.pid, guard.kind, guard.code = target.pid, kind, code
        guard.mem = target.memory.mem
        guard.max_pause_ns = int((max_pause or 0) * 1e9)
        for index, regset in enumerate((*_REGSETS[_MACHINE], NT_SIGINFO)):
            guard.regset_types[index] = regset
        guard.threads = ffi.cast("struct fastdump_thread *", at + head)
        guard.threads_capacity = threads
        guard.area = ffi.cast("unsigned char *", at + head + table)
        guard.area_capacity = threads * _AREA_A_THREAD
        self._socket, theirs = socket.socketpair()
        guard.command = os.pidfd_open(os.getpid())
        try:
            self._pid = lib.fastdump_guard_start(guard, theirs.fileno())
        finally:
            theirs.close()
            os.close(guard.command)
        if self._pid < 0:
            self._socket.close()
            raise _Refused(os.strerror(-self._pid))
        try:
            if not self._socket.recv(1):
                raise _Refused("the guardian was killed")
        except BaseException:
            self.end()
            raise

    def end(self) -> bool:
        """Let it undo everything; False if it was killed."""
        self._socket.close()
        return os.waitpid(self._pid, _WALL)[1] == 0

    @property
    def stop_error(self) -> int:
        """The errno of what could not be stopped; 0 if it is stopped, or copied."""
        return int(self._guard.error) if self._guard.step == lib.FASTDUMP_STEP_STOP else 0

    @property
    def child(self) -> int:
        return int(self._guard.child)

    @property
    def released(self) -> bool:
        return bool(self._guard.released)

    @property
    def zombie(self) -> bool:
        return bool(self._guard.zombie)

    @property
    def failure(self) -> str:
        text = _STEPS[self._guard.step]
        if self._guard.step == lib.FASTDUMP_STEP_CLONE:
            text += f": {os.strerror(self._guard.error)}"
        return text

    @property
    def seconds(self) -> tuple[float, float, float]:
        """Of stop, fork and all together."""
        guard = self._guard
        return guard.stop_ns / 1e9, guard.fork_ns / 1e9, guard.total_ns / 1e9

    def registers(self) -> list[Registers]:
        """Of all threads, the first one of the process first."""
        guard = self._guard
        found = [
            Registers(t.tid, t.blocked, dict(self._regsets(t.regsets, t.end)))
            for t in guard.threads[0 : guard.threads_used]
        ]
        found.sort(key=lambda t: (t.tid != guard.pid, t.tid))
        return found

    def _regsets(self, at: int, end: int) -> Iterator[tuple[int, bytes]]:
        while at < end:
            kind, length = struct.unpack_from("<II", self._registers, at)
            content = bytes(self._registers[at + 8 : at + 8 + length])
            if kind == NT_PRSTATUS and length != _GENERAL[_MACHINE][0]:
                return  # a 32-bit task: its registers do not fit into the core of a 64-bit one
            yield kind, content
            at += 8 + -(-length // 8) * 8


def _no_fork(target: LiveProcess, max_pause: float | None, check_memory: bool) -> str:
    """Why a fork is not even tried; empty if it is."""
    if target.answers_forks:
        return "it waits for its own forks by userfaultfd(2)"
    if is_frozen(target.pid):
        return "its cgroup is frozen: it could not run the system call"
    if not check_memory and max_pause is None:
        return ""
    cost = fork_cost(target)
    if check_memory and not cost.fits:
        return (
            f"the copy may take {size(cost.memory)} while it is read, "
            f"and {size(cost.free)} are free (--ignore-headroom forks all the same)"
        )
    if max_pause is not None and cost.seconds > max_pause:
        return f"a fork may take {cost.seconds:.2g} s"
    return ""


def _cannot_fork(target: LiveProcess, why: str) -> UsageError:
    return UsageError(
        f"process {target.pid} cannot be forked: {why}", "--pause freeze stops it instead"
    )


def _why_not(target: LiveProcess, error: int) -> str:
    tracer: Any = "0"
    with contextlib.suppress(SourceGone):
        tracer = target.status().get("TracerPid", "0")
    if tracer != "0":
        return f"it is traced by process {tracer} already"
    return os.strerror(error)


def _system_call(process: LiveProcess, regions: Sequence[Region]) -> int:
    """The address of a system call instruction in *process*, 0 if there is none.

    Mapped files are read, not the process: no page of it may be touched.
    """
    best, plain = _SYSTEM_CALLS[_MACHINE]
    found = 0
    for region in regions:
        if region.perms[2] != "x" or not region.has_file or not region.private:
            continue
        with contextlib.suppress(OSError):
            fd = process.open_mapped(region)
            try:
                content = os.pread(fd, min(region.length, 64 << 20), region.offset)
            finally:
                os.close(fd)
            at = _aligned(content, best)
            if at >= 0:
                return region.start + at
            at = _aligned(content, plain)
            found = found or (region.start + at if at >= 0 else 0)
    for region in regions:
        if region.path == "[vdso]" and not found:
            vdso = bytearray(region.length)
            process.read_into(region.start, vdso)
            at = _aligned(vdso, plain)
            found = region.start + at if at >= 0 else 0
    return found


def _aligned(content: bytes | bytearray, code: bytes) -> int:
    step = 4 if _MACHINE == "aarch64" else 1
    at = content.find(code)
    while at >= 0 and at % step:
        at = content.find(code, at + 1)
    return at
