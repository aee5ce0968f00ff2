"""Small C programs with awkward memory layouts, each of which prints its truth as a line of JSON.

A target lives until its standard input ends, or its parent *thread* does (PR_SET_PDEATHSIG):
start it from a thread that outlives it.

The truth of ``awkward`` lists regions: ``name, start, end, perms, label, exact, path, content``.
``exact``: start to end is one line of maps, else a part of one. ``path`` is as the target knew it,
without the kernel's " (deleted)"; ``os.fsencode`` gives its bytes. ``content`` covers the region
with ``[start, end, kind, seed]``:

=============  ======================  =========================================================
kind           bytes                   present in the page tables
=============  ======================  =========================================================
pattern        ``pattern()``           yes
zero           zeros                   yes: a page of its own
zeropage       zeros                   yes: the zero page
absent         zeros                   no (of shared memory: reading would allocate it)
elsewhere      ``pattern()``           no: written through another mapping of the shared memory
file           ``pattern()``           as the kernel likes: never written here, the file has them
tail           zeros                   as "file": between a file's end and the end of its page
nodata         none: SIGBUS            no: pages past a file's end
guard          none: SIGSEGV           no: MADV_GUARD_INSTALL
uffd-missing   none until supplied     no
other          whatever they are       whatever they are
=============  ======================  =========================================================
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
FLAGS = ("-O1", "-g", "-Wall", "-Wextra", "-pthread")
SHARED = {"leaky_lib", "lib_bss", "pattern", "plugin"}
STRIPPED = {"leaky", "objects", "plugin", "plugin_host", "service", "sessions"}
NEEDS = {"awkward": ("lib_bss",), "leaky": ("leaky_lib",)}


def build(name: str) -> Path:
    """Compile ``NAME.c`` or ``NAME.cpp`` if it, or the header, is newer than the program.

    Safe in parallel runs.
    """
    for needed in NEEDS.get(name, ()):
        build(needed)
    plus = (HERE / f"{name}.cpp").exists()
    source = HERE / (f"{name}.cpp" if plus else f"{name}.c")
    output = BUILD / (f"{name}.so" if name in SHARED else name)
    BUILD.mkdir(exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # or one that runs by now is replaced: "(deleted)"
        newest = max(path.stat().st_mtime_ns for path in (source, HERE / "target.h"))
        if not output.exists() or output.stat().st_mtime_ns < newest:
            _compile(name, source, output)
    return output


def _compile(name: str, source: Path, output: Path) -> None:
    plus = source.suffix == ".cpp"
    kind = ("-shared", "-fPIC") if name in SHARED else ()
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        fresh = Path(folder) / output.name
        compiler = os.environ.get("CXX", "g++") if plus else os.environ.get("CC", "gcc")
        flags = [*FLAGS, "-std=gnu++17" if plus else "-std=gnu11", *kind]
        flags += ["-s"] if name in STRIPPED else []
        subprocess.run([*compiler.split(), *flags, source, "-o", fresh, "-ldl"], check=True)
        fresh.replace(output)


@functools.cache
def _filler() -> Any:
    fill = ctypes.CDLL(str(build("pattern"))).fill
    fill.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_uint64)
    fill.restype = None
    return fill


def pattern(address: int, length: int, seed: int) -> bytes:
    """What *length* bytes of pattern at *address* hold; any alignment."""
    out = bytearray(length)
    if length:
        _filler()((ctypes.c_char * length).from_buffer(out), address, length, seed)
    return bytes(out)


def expected(start: int, end: int, kind: str, seed: int) -> bytes | None:
    """The bytes of one piece of ``content``; None if it has none or they are not known."""
    if kind in ("pattern", "file", "elsewhere"):
        return pattern(start, end - start, seed)
    if kind in ("zero", "zeropage", "absent", "tail"):
        return bytes(end - start)
    return None


class Target:
    """A running target; leaving the ``with`` block kills it.

    Args:
        program: What it is started by, if not by itself.
    """

    def __init__(
        self,
        name: str,
        *args: str | int | os.PathLike[str],
        cwd: Path | None = None,
        program: Sequence[str] = (),
    ) -> None:
        words = (str(arg) if isinstance(arg, int) else os.fspath(arg) for arg in args)
        command = [*(program or [str(build(name))]), *words]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=cwd
        )
        self.pid = self.process.pid
        try:
            self.truth: dict[str, Any] = self.read_truth()
        except BaseException:
            self.kill()
            raise

    def read_line(self) -> str:
        """The next line of the target's output, without its newline."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError(f"{self.process.args!r} ended, status {self.process.wait()}")
        return line[:-1].decode()

    def read_truth(self) -> dict[str, Any]:
        """Read the line of JSON that the target prints at its start, and after an exec."""
        truth: dict[str, Any] = json.loads(self.read_line())
        self.truth = truth
        return truth

    def region(self, name: str) -> dict[str, Any]:
        """One of the truth's regions."""
        found: dict[str, Any] = next(r for r in self.truth["regions"] if r["name"] == name)
        return found

    def send(self, data: bytes) -> None:
        """Write *data* to the target's standard input."""
        assert self.process.stdin
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def stop(self) -> None:
        """SIGSTOP the target and wait until it has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        self._wait_for(os.WSTOPPED, os.CLD_STOPPED)

    def resume(self) -> None:
        """Let a stopped target run again."""
        os.kill(self.pid, signal.SIGCONT)
        self._wait_for(os.WCONTINUED, os.CLD_CONTINUED)

    def _wait_for(self, option: int, code: int) -> None:
        # WNOWAIT: an exit stays for subprocess to collect.
        state = os.waitid(os.P_PID, self.pid, option | os.WEXITED | os.WNOWAIT)
        if not state or state.si_code != code:
            raise ProcessLookupError(f"{self.process.args!r} ended")

    def wait(self) -> int:
        """Wait until the target has exited; its status as of subprocess."""
        return self.process.wait()

    def kill(self) -> None:
        """Kill and reap the target; harmless if it has ended."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream
            stream.close()

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()


def start(
    name: str,
    *args: str | int | os.PathLike[str],
    cwd: Path | None = None,
    program: Sequence[str] = (),
) -> Target:
    """Build and start a target; returns when it has printed its truth."""
    return Target(name, *args, cwd=cwd, program=program)
