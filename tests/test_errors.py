"""Every error: one line and a hint, the documented exit code, no traceback, no file left."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import importlib.metadata
import json
import mmap
import os
import pty
import re
import resource
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

import fastdump.cli
import targets
from fastdump import process
from fastdump.errors import OutputFailed
from fastdump.output import PartFile, PartFolder
from test_real import ending

NOBODY = 65534
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS = 1, 4, 8
_CLONE_NEWUSER = 0x10000000
_PTRACE_SEIZE = 0x4206
_CAP_NET_RAW = 13
_CAPABILITY_VERSION_3 = 0x20080522

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
libc = ctypes.CDLL(None, use_errno=True)


class Outcome(NamedTuple):
    """How a run of fastdump ended."""

    code: int
    out: str
    err: str


def run(*args: object, **options: object) -> Outcome:
    """Run fastdump in a process of its own."""
    command = [sys.executable, "-m", "fastdump", *(os.fspath(str(arg)) for arg in args)]
    done = subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, encoding="utf-8", **options
    )  # type: ignore[call-overload]
    return Outcome(done.returncode, done.stdout, done.stderr)


def check_refused(outcome: Outcome, code: int, *words: str, hint: bool = True) -> None:
    """One line that has *words*, a hint, nothing else; and the current folder is empty."""
    message, *rest = outcome.err.splitlines()
    assert (outcome.code, outcome.out) == (code, ""), outcome
    assert message.startswith("fastdump: "), outcome.err
    assert all(word in message for word in words), outcome.err
    assert all(line.startswith("  hint: ") for line in rest), outcome.err
    assert len(rest) in ((1,) if hint else (0, 1)), outcome.err
    assert os.listdir() == []


def check_usage(outcome: Outcome, *words: str) -> None:
    """Click's own wording: the usage, then one line with the error."""
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert "Traceback" not in outcome.err
    assert all(word in outcome.err.splitlines()[-1] for word in words), outcome.err
    assert os.listdir() == []


# Other identities: a forked child of this process, because another user may not be able to
# start this interpreter. All that it could need is imported before.


def _import_all() -> None:
    for name in (
        "encodings.unicode_escape",
        "fastdump.cli.dump_command",
        "fastdump.cli.info_command",
        "fastdump.cli.maps_command",
        "fastdump.plan",
        "fastdump.raw_source",
        "lz4.frame",
        "rich.console",
        "rich.progress",
        "rich.table",
    ):
        importlib.import_module(name)


def checked(result: int) -> int:
    """The result of a C function that sets errno."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    checked(libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))  # setuid cleared it, exec would set it


def become_undumpable() -> None:
    become_nobody()
    checked(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def become_nobody_with_a_capability(effective: bool) -> None:
    checked(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    become_nobody()
    bit = 1 << _CAP_NET_RAW
    head = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    sets = struct.pack("6I", bit if effective else 0, bit, 0, 0, 0, 0)
    checked(libc.capset(head, sets))
    checked(libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))


class NotHere(Exception):
    """This machine does not allow it."""


def enter_user_namespace() -> None:
    """Be root in a user namespace of our own."""
    try:
        checked(libc.unshare(_CLONE_NEWUSER))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSPC):  # user_namespaces(7), max_user_namespaces
            raise NotHere from error
        raise
    Path("/proc/self/uid_map").write_text("0 0 1")


def _in_child(body: Callable[[], object]) -> NoReturn:
    code = 70
    try:
        body()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 71
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\nTraceback\n".encode())
    finally:
        os._exit(code)


@contextlib.contextmanager
def forked(prepare: Callable[[], object]) -> Iterator[int]:
    """A child that has done *prepare*, and waits."""
    reader, writer = os.pipe()

    def body() -> None:
        try:
            prepare()
            checked(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))  # setuid clears it
            os.write(writer, b"!")
        except NotHere:
            os.write(writer, b"?")
        while True:
            signal.pause()

    pid = os.fork()
    if pid == 0:
        _in_child(body)
    os.close(writer)
    try:
        said = os.read(reader, 1)
        if said == b"?":
            pytest.skip("not possible on this machine")
        assert said == b"!"
        yield pid
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def run_as(prepare: Callable[[], object], *args: object) -> Outcome:
    """Run fastdump in a forked child that has done *prepare*."""
    _import_all()
    pipes = out, err = os.pipe(), os.pipe()

    def body() -> None:
        for fd, (_, writer) in enumerate(pipes, 1):
            os.dup2(writer, fd)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w") for fd in (1, 2))
        prepare()
        fastdump.cli.main([str(arg) for arg in args])

    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _in_child(body)
    texts = []
    for reader, writer in (out, err):  # both are short: no pipe fills
        os.close(writer)
        with open(reader, encoding="utf-8") as file:
            texts.append(file.read())
    return Outcome(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), *texts)


# The target


@pytest.mark.parametrize("pid", ["2147483647", "999999999999999999999999", "0"])
@pytest.mark.parametrize("command", ["maps", "dump"])
def test_no_such_process(in_tmp: Path, command: str, pid: str) -> None:
    check_refused(run(command, pid), 4, f"no process {pid}", hint=pid != "0")


def test_a_process_that_has_ended(in_tmp: Path) -> None:
    with targets.start("exiter", "4K") as target:
        target.send(b"x")
        target.wait()
        check_refused(run("dump", target.pid), 4, f"no process {target.pid}")


def test_a_pid_that_is_no_number(in_tmp: Path) -> None:
    check_usage(run("dump", "self"), "'self'")


def test_no_pidfd_is_needed(in_tmp: Path) -> None:
    """Linux 5.2 has none, and some containers forbid it."""
    with targets.start("exiter", "4K") as target, pytest.MonkeyPatch.context() as patch:
        patch.delattr(os, "pidfd_open")
        with process.LiveProcess(target.pid) as opened:
            assert opened.regions()


@pytest.mark.parametrize("command", ["maps", "dump"])
def test_a_thread_names_its_process(in_tmp: Path, command: str) -> None:
    with targets.start("threads", 1) as target:
        outcome = run(command, target.truth["threads"][0]["tid"])
    check_refused(outcome, 2, "is a thread")
    assert str(target.pid) in outcome.err.splitlines()[1]


def test_a_kernel_thread(in_tmp: Path) -> None:
    found = None
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[6]) & 0x00200000:  # PF_KTHREAD
                found = path.parent.name
                break
    if found is None:
        pytest.skip("no kernel thread to be seen from here")
    check_refused(run("dump", found), 2, "kernel thread", hint=False)


def test_a_zombie(in_tmp: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        check_refused(run("dump", pid), 4, "has exited", hint=False)
    finally:
        os.waitpid(pid, 0)


@pytest.mark.parametrize("format", ["lz4", "core", "raw"])
def test_a_zombie_leader_with_a_living_thread(in_tmp: Path, format: str) -> None:
    with targets.start("linger", "1M") as target:
        outcome = run("dump", target.pid, "-f", format, "-o", "out")
        assert outcome.code == 0, outcome.err
        start, end = target.truth["start"], target.truth["end"]
        if format == "raw":
            dumped = (in_tmp / f"out/{target.pid}_mem_{start:x}.bin").read_bytes()
            assert dumped == targets.pattern(start, end - start, target.truth["seed"])


# Permission


@root_only
@pytest.mark.parametrize("command", ["maps", "dump"])
def test_of_another_user(in_tmp: Path, command: str) -> None:
    with targets.start("exiter", "4K") as target:
        outcome = run_as(become_nobody, command, target.pid)
    check_refused(outcome, 5, "belongs to user 0", f"you are user {NOBODY}")
    assert "CAP_SYS_PTRACE" in outcome.err


@root_only
@pytest.mark.parametrize("command", ["info", "strings", "search", "diff"])
def test_a_dump_of_another_user(in_tmp: Path, command: str) -> None:
    dump = (
        Path(tempfile.gettempdir()) / f"fastdump-test-{os.getpid()}"
    )  # not in_tmp: nobody may enter that
    more = {"search": ["text"], "diff": [dump]}.get(command, [])
    try:
        dump.touch(0o600)
        dump.write_bytes(b"{}")
        outcome = run_as(become_nobody, command, dump, *more)
    finally:
        dump.unlink()
    check_refused(outcome, 5, f"cannot read {dump}: Permission denied")


@root_only
def test_a_process_of_its_own_user_is_read(in_tmp: Path) -> None:
    with forked(become_nobody) as pid:
        outcome = run_as(become_nobody, "dump", pid, "-f", "null")
    assert (outcome.code, outcome.err) == (0, "")


@root_only
def test_not_dumpable(in_tmp: Path) -> None:
    with forked(become_undumpable) as pid:
        check_refused(run_as(become_nobody, "dump", pid), 5, "not dumpable")


@root_only
@pytest.mark.parametrize("effective", [True, False], ids=["effective", "permitted"])
def test_a_capability_that_the_caller_lacks(in_tmp: Path, effective: bool) -> None:
    with forked(lambda: become_nobody_with_a_capability(effective)) as pid:
        check_refused(run_as(become_nobody, "dump", pid), 5, "capabilities that you have not")


@root_only
def test_of_another_user_namespace(in_tmp: Path) -> None:
    with forked(enter_user_namespace):
        pass  # skips where none can be made
    with targets.start("exiter", "4K") as target:
        check_refused(run_as(enter_user_namespace, "dump", target.pid), 5, "another user namespace")


@root_only
def test_a_child_namespace_is_read_by_its_creator(in_tmp: Path) -> None:
    with forked(enter_user_namespace) as pid:
        outcome = run_as(lambda: None, "dump", pid, "-f", "null")
    assert (outcome.code, outcome.err) == (0, "")


def test_traced_by_another_process_is_read_all_the_same(in_tmp: Path) -> None:
    with targets.start("exiter", "64K") as target:
        libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
        checked(libc.ptrace(_PTRACE_SEIZE, target.pid, None, None))
        outcome = run("dump", target.pid, "-o", "out")
        tracer = process._status(f"/proc/{target.pid}")["TracerPid"]
    assert (outcome.code, outcome.err) == (0, "")
    assert tracer == str(os.getpid())


def _why(monkeypatch: pytest.MonkeyPatch, scope: str, **fields: str) -> tuple[str, str]:
    read = process._read

    def pretend(path: str) -> str:
        return scope if path.endswith("yama/ptrace_scope") else read(path)

    monkeypatch.setattr(process, "_read", pretend)
    ours = process._status("/proc/self")
    uid = os.geteuid()
    status = {**ours, "Uid": f"{uid} {uid} {uid} {uid}", **fields}
    reason = process._why(os.getpid(), status, uid)
    return reason, process._hint(status, reason)


@pytest.mark.parametrize(
    ("scope", "word"), [("1\n", "parents"), ("2\n", "CAP_SYS_PTRACE"), ("3\n", "nobody")]
)
def test_yama_is_named(monkeypatch: pytest.MonkeyPatch, scope: str, word: str) -> None:
    reason, _ = _why(monkeypatch, scope)
    assert "Yama" in reason
    assert f"ptrace_scope is {scope.strip()}" in reason
    assert word in reason


def test_without_yama_a_tracer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reason, hint = _why(monkeypatch, "0\n", TracerPid="123")
    assert "traced by process 123" in reason
    assert "123" in hint


def test_without_any_reason_the_rest_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reason, _ = _why(monkeypatch, "0\n", TracerPid="0")
    assert "security module" in reason


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(errno.EIO, "Input/output error"), 2, "Input/output error"),
        (OSError("no errno"), 2, "no errno"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a\x1b"), 2, "/a\\x1b: No such file"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), 5, "/a: Permission denied"),
        (ProcessLookupError(errno.ESRCH, "No such process"), 4, "No such process"),
    ],
)
def test_an_error_that_nobody_foresaw_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError,
    code: int,
    says: str,
) -> None:
    """And it is not said of standard output."""

    def fail(_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(process.LiveProcess, "regions", fail)
    with pytest.raises(SystemExit) as end:
        fastdump.cli.main(["maps", str(os.getpid())])
    assert end.value.code == code
    assert capsys.readouterr() == ("", f"fastdump: {says}\n")


@root_only
def test_a_file_of_a_dump_that_may_not_be_read(in_tmp: Path) -> None:
    with targets.start("exiter", "2M") as target:
        outcome = run("dump", target.pid, "-f", "raw-lz4", "-o", "out", "-q")
    assert outcome == (0, "", "")
    in_tmp.chmod(0o755)
    folder = in_tmp / "out"
    folder.chmod(0o755)
    pieces = [path for path in folder.iterdir() if path.suffix == ".lz4"]
    for path in folder.iterdir():
        path.chmod(0o644)
    before = run_as(become_nobody, "info", "out")
    assert before.code == 0
    pieces[0].chmod(0o600)
    assert run_as(become_nobody, "info", "out") == before


# The output

FORMATS = ["lz4", "core", "raw", "raw-lz4"]


@pytest.fixture(scope="module")
def target() -> Iterator[targets.Target]:
    with targets.start("exiter", "2M") as started:
        yield started


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("suffix", ["", ".part"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_an_output_that_exists(
    in_tmp: Path, target: targets.Target, format: str, suffix: str, kind: str
) -> None:
    (in_tmp / "elsewhere").write_text("precious")
    old = in_tmp / f"out{suffix}"
    if kind == "file":
        old.write_text("old")
    elif kind == "link":
        old.symlink_to("elsewhere")
    else:
        old.mkdir()
        (old / "manifest.json").write_text("{}")
    before = sorted(os.listdir())
    outcome = run("dump", target.pid, "-f", format, "-o", "out")
    assert (outcome.code, outcome.out) == (7, "")
    first, second = outcome.err.splitlines()
    assert f"out{suffix} exists" in first
    assert "--force" in second
    assert sorted(os.listdir()) == before

    outcome = run("dump", target.pid, "-f", format, "-o", "out", "--force")
    assert (outcome.code, outcome.err) == (0, "")
    assert sorted(os.listdir()) == ["elsewhere", "out"]
    assert (in_tmp / "elsewhere").read_text() == "precious"
    assert not (in_tmp / "out").is_symlink()
    assert (in_tmp / "out").is_dir() == format.startswith("raw")


def test_force_leaves_a_folder_that_is_no_dump(in_tmp: Path, target: targets.Target) -> None:
    (in_tmp / "out").mkdir()
    (in_tmp / "out/thesis.tex").write_text("precious")
    outcome = run("dump", target.pid, "-o", "out", "--force")
    assert (outcome.code, os.listdir()) == (7, ["out"])
    assert (in_tmp / "out/thesis.tex").read_text() == "precious"


def test_force_keeps_the_old_output_when_the_new_one_fails(in_tmp: Path) -> None:
    (in_tmp / "out").write_text("old")
    outcome = run("dump", 2147483647, "-o", "out", "--force")
    assert outcome.code == 4
    with targets.start("exiter", "2M") as target:
        limit = ["prlimit", f"--fsize={1 << 20}", sys.executable, "-m", "fastdump", "dump"]
        command = [*limit, str(target.pid), "-o", "out", "--force"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert os.listdir() == ["out"]
    assert (in_tmp / "out").read_text() == "old"


@pytest.fixture(params=[PartFile, PartFolder])
def replacing(request: pytest.FixtureRequest, in_tmp: Path) -> Iterator[PartFile | PartFolder]:
    """A whole output, to be committed in place of an old dump of three files."""
    out = in_tmp / "out"
    out.mkdir()
    for name in ("1_mem_1000.bin", "1_mem_2000.bin", "manifest.json"):
        (out / name).write_text("old")
    new = request.param(out, force=True)
    yield new
    new.abort()
    assert not (in_tmp / "out.part").exists()


def test_force_leaves_no_half_of_the_old_dump(
    in_tmp: Path, replacing: PartFile | PartFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, unlink, removed = replacing.part.stat().st_ino, Path.unlink, []

    def interrupted(path: Path) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(path)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replacing.commit()
    monkeypatch.undo()
    assert (in_tmp / "out").stat().st_ino == whole


def test_force_puts_the_old_dump_back(
    in_tmp: Path, replacing: PartFile | PartFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def failing(path: Path, target: Path) -> None:
        if path == replacing.part and not target.exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputFailed, match="Input/output error"):
        replacing.commit()
    replacing.abort()
    assert os.listdir() == ["out"]
    assert len(os.listdir("out")) == 3


@pytest.mark.parametrize("format", FORMATS)
def test_no_such_folder(in_tmp: Path, target: targets.Target, format: str) -> None:
    outcome = run("dump", target.pid, "-f", format, "-o", "missing/out")
    check_refused(outcome, 7, "missing/out.part", "No such file or directory")


@root_only
def test_a_plan_for_a_folder_that_may_not_be_entered(in_tmp: Path) -> None:
    (in_tmp / "closed").mkdir(mode=0o700)
    with forked(become_nobody) as pid:
        outcome = run_as(become_nobody, "dump", pid, "--plan", "-o", "closed/in/out")
    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize("output", [".", "..", "", "/dev/null/out", "x" * 300])
@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "force"])
@pytest.mark.parametrize("format", ["lz4", "raw"])
def test_an_output_that_cannot_be_one(
    in_tmp: Path, target: targets.Target, format: str, force: tuple[str, ...], output: str
) -> None:
    here = in_tmp / "precious/here"
    here.mkdir(parents=True)
    outcome = run("dump", target.pid, "-f", format, "-o", output, *force, cwd=here)
    assert "Traceback" not in outcome.err
    assert (outcome.code, outcome.out) in ((2, ""), (7, ""))
    assert list(in_tmp.rglob("*")) == [in_tmp / "precious", here]


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_size_limit(in_tmp: Path, target: targets.Target, format: str) -> None:
    command = ["prlimit", f"--fsize={1 << 20}", sys.executable, "-m", "fastdump", "dump"]
    done = subprocess.run(
        [*command, str(target.pid), "-f", format, "-o", "out"], capture_output=True, text=True
    )
    check_refused(Outcome(done.returncode, done.stdout, done.stderr), 7, "File too large")


@root_only
@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_without_permission(in_tmp: Path, format: str) -> None:
    with forked(become_nobody) as pid:
        outcome = run_as(become_nobody, "dump", pid, "-f", format, "-o", "/proc/1/out")
        assert outcome.code == 7
        outcome = run_as(become_nobody, "dump", pid, "-f", format, "-o", "/etc/fastdump-out")
    check_refused(outcome, 7, "/etc/fastdump-out.part", "Permission denied")


@root_only
@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_that_may_be_written_but_not_read(format: str) -> None:
    with tempfile.TemporaryDirectory() as box, forked(become_nobody) as pid:
        os.chmod(box, 0o1733)
        outcome = run_as(become_nobody, "dump", pid, "-f", format, "-o", f"{box}/out")
        assert outcome.code in (0, 3), (
            outcome.err
        )  # 3: files of the interpreter that only root reads
        assert os.listdir(box) == ["out"]


@root_only
@pytest.mark.parametrize("format", FORMATS)
def test_a_read_only_disk(in_tmp: Path, target: targets.Target, format: str) -> None:
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", in_tmp])
    if mount.returncode:
        pytest.skip("may not mount")
    try:
        outcome = run("dump", target.pid, "-f", format, "-o", in_tmp / "out")
        check_refused(outcome, 7, "Read-only file system")
    finally:
        subprocess.run(["umount", in_tmp], check=True)


@pytest.mark.parametrize("format", ["raw", "raw-lz4"])
def test_a_folder_is_not_streamed(in_tmp: Path, target: targets.Target, format: str) -> None:
    check_refused(run("dump", target.pid, "-f", format, "-o", "-"), 2, "cannot be streamed")


def test_a_terminal_gets_no_dump(in_tmp: Path, target: targets.Target) -> None:
    master, slave = pty.openpty()
    with open(master, "rb"), open(slave, "wb") as terminal:
        command = [sys.executable, "-m", "fastdump", "dump", str(target.pid), "-o", "-"]
        done = subprocess.run(command, stdout=terminal, stderr=subprocess.PIPE, text=True)
    check_refused(Outcome(done.returncode, "", done.stderr), 2, "terminal")


@pytest.mark.parametrize("format", FORMATS)
def test_nobody_else_may_read_the_output(in_tmp: Path, target: targets.Target, format: str) -> None:
    outcome = run("dump", target.pid, "-f", format, "-o", "out", umask=0)
    assert outcome.code == 0, outcome.err
    out = in_tmp / "out"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in [out, *out.rglob("*")] if path.is_file()}
    assert modes == {0o600}
    if out.is_dir():
        assert stat.S_IMODE(out.stat().st_mode) == 0o700


# The command line


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--level", "0"], "--level"),
        (["--level", "13"], "--level"),
        (["--level", "fast"], "--level"),
        (["--threads", "0"], "--threads"),
        (["--format", "elf"], "--format"),
        (["--colour"], "--colour"),
    ],
    ids=" ".join,
)
def test_bad_options(in_tmp: Path, target: targets.Target, args: list[str], word: str) -> None:
    check_usage(run("dump", target.pid, *args), word)


def test_a_missing_argument(in_tmp: Path) -> None:
    check_usage(run("dump"), "PID")


def test_an_unknown_command(in_tmp: Path) -> None:
    check_usage(run("dunp"), "dunp")


@pytest.mark.parametrize("command", ["maps", "dump"])
@pytest.mark.parametrize("option", ["--include", "--exclude"])
@pytest.mark.parametrize("rule", ["7f80-7f00", "1000-1000"])
def test_an_empty_address_range(
    in_tmp: Path, target: targets.Target, command: str, option: str, rule: str
) -> None:
    check_refused(run(command, target.pid, option, rule), 2, rule, "empty", hint=False)


@pytest.mark.parametrize(
    "args",
    [
        ["maps"],
        ["dump", "-o", "out"],
        ["dump", "-o", "out", "-f", "raw"],
        ["dump", "-o", "out", "--plan"],
        ["dump", "-f", "null", "--plan"],
        ["dump", "-f", "null"],
    ],
    ids=" ".join,
)
def test_json_is_one_valid_document(in_tmp: Path, awkward: targets.Target, args: list[str]) -> None:
    command, *options = args
    outcome = run(command, awkward.pid, *options, "--json")
    assert outcome.code in (0, 3), outcome.err
    assert json.loads(outcome.out)
    assert outcome.out.count("\n") == 1


def test_json_of_a_stream_goes_to_standard_error(in_tmp: Path, target: targets.Target) -> None:
    command = [sys.executable, "-m", "fastdump", "dump", str(target.pid), "-o", "-", "--json"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0
    report = json.loads(done.stderr)
    assert report["size"] == len(done.stdout)


# Rules


def test_a_rule_that_matches_nothing_is_told(in_tmp: Path, target: targets.Target) -> None:
    rules = [
        "--exclude",
        "libnosuch*",
        "--include",
        "7-8",
        "--exclude",
        "device",
        "--include",
        "r-xs",
    ]
    for command in (["maps"], ["dump", "-q", "-f", "null"], ["why"]):
        outcome = run(command[0], target.pid, *command[1:], *rules)
        assert outcome.code == 0
        assert outcome.err.splitlines() == [
            "fastdump: --exclude libnosuch* matches nothing",
            "fastdump: --include 7-8 matches nothing",
        ]


def test_how_often_of_one_look(in_tmp: Path, target: targets.Target) -> None:
    check_refused(run("why", target.pid, "--count", "3"), 2, "--count is how often --every looks")


# Too many open files


@pytest.mark.parametrize("args", [["dump", "-f", "null"], ["maps"], ["why"]])
def test_too_many_open_files_is_not_said_of_the_target(
    in_tmp: Path, target: targets.Target, args: list[str]
) -> None:
    command, *options = args
    codes = set()
    for most in (6, 8, 12, 16):
        outcome = run(
            command,
            target.pid,
            *options,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)),  # noqa: B023
        )
        codes.add(outcome.code)
        if outcome.code:
            check_refused(outcome, 2, "cannot open /proc/", "Too many open files")
    assert 2 in codes


# A locale that is not UTF-8


@pytest.fixture
def abroad(in_tmp: Path) -> Iterator[tuple[int, bytes]]:
    """A process that maps a file whose name ASCII does not have: its pid, and that name."""
    name = "日本 ü\udcff.dat"
    (in_tmp / name).write_bytes(b"abroad " * 1000)
    program = "import mmap; f = open(input(), 'r+b'); m = mmap.mmap(f.fileno(), 0); input(len(m))"
    with subprocess.Popen(
        [sys.executable, "-X", "utf8", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(os.fsencode(name) + b"\n")
        process.stdin.flush()
        assert process.stdout.read(4) == b"7000"
        yield process.pid, os.fsencode(name)
        process.stdin.close()


_ASCII = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def test_a_path_that_the_locale_cannot_write(abroad: tuple[int, bytes]) -> None:
    pid, _ = abroad
    for args in (["maps", pid], ["info", pid, "--regions"]):
        outcome = run(*args, env=_ASCII)
        assert (outcome.code, outcome.err) == (0, "")
        assert "/\\u65e5\\u672c \\xfc\\xff.dat\n" in outcome.out


@pytest.mark.parametrize("format", ["core", "raw"])
def test_a_path_is_the_same_bytes_in_every_locale(abroad: tuple[int, bytes], format: str) -> None:
    pid, name = abroad
    assert run("dump", pid, "-f", format, "-o", "out", env=_ASCII)[::2] == (0, "")
    if format == "raw":
        assert run("extract", "out", "-f", "core", "-o", "core", env=_ASCII)[::2] == (0, "")
    core = "out" if format == "core" else "core"
    # In NT_FILE: the process itself knows it by this relative name only.
    assert os.fsencode(Path.cwd()) + b"/" + name + b"\0" in Path(core).read_bytes()
    outcome = run("info", core, "--regions", env=_ASCII)
    assert "/\\u65e5\\u672c \\xfc\\xff.dat\n" in outcome.out


# An interrupt


def test_an_interrupt_while_modules_are_imported(in_tmp: Path) -> None:
    (in_tmp / "click.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    outcome = run(
        "--version",
        env={**os.environ, "PYTHONPATH": str(in_tmp)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert outcome == (130, "", "fastdump: interrupted\n")


def test_the_command_is_what_is_run_as_a_module() -> None:
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="fastdump")
    assert command.value == "fastdump.__main__:main", "run .ci/setup test again"


# Standard output


def test_maps_into_head(in_tmp: Path, awkward: targets.Target) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "wb") as pipe:
        maps = subprocess.Popen(
            [sys.executable, "-m", "fastdump", "maps", str(awkward.pid)],
            stdout=pipe,
            stderr=subprocess.PIPE,
        )
    # The reader is gone before the first byte comes.
    assert maps.communicate() == (None, b"")
    assert maps.returncode == 7


def test_maps_into_a_reader_that_takes_one_line(in_tmp: Path, awkward: targets.Target) -> None:
    command = f"{sys.executable} -m fastdump maps {awkward.pid} | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.stdout.split()[0] == "address"
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("args", [["maps"], ["dump", "-f", "null"], ["dump", "-o", "-"]])
def test_a_full_standard_output(in_tmp: Path, target: targets.Target, args: list[str]) -> None:
    command, *options = args
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastdump", command, str(target.pid), *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    words = "cannot write standard output", "No space left on device"
    check_refused(Outcome(done.returncode, "", done.stderr), 7, *words)


def test_ranges_that_do_not_fit(in_tmp: Path, target: targets.Target) -> None:
    start, end = target.truth["start"], target.truth["end"]
    command = ["prlimit", f"--fsize={1 << 20}", sys.executable, "-m", "fastdump", "extract"]
    words = [str(target.pid), f"{start:x}-{end:x}", "-o", "out"]
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    check_refused(outcome, 7, "cannot write out", "File too large")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    "args", ["maps {}", "dump {} -f null", "dump {} -o -", "dump {} -qo out", "dump 0"]
)
def test_closed_standard_streams(
    in_tmp: Path, target: targets.Target, args: str, closed: str
) -> None:
    line = f"{sys.executable} -m fastdump {args.format(target.pid)} {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True)
    assert b"Traceback" not in done.stderr
    code = 4 if args == "dump 0" else 7 if " >&-" in f" {closed}" and "-q" not in args else 0
    assert done.returncode == code, done.stderr
    if "-q" in args:
        assert subprocess.run(["lz4", "-tq", "out"]).returncode == 0


# Hostile names

HOSTILE = "\x1b]0;owned\x07\x1b[31m[red]red[bold] :bomb:\n\u202e\x9b5m"
ESCAPED = r"\x1b]0;owned\x07\x1b[31m[red]red[bold] :bomb:\n\u202e\x9b5m"


def _map_file(path: Path) -> mmap.mmap:
    path.write_bytes(b"hostile" * 1000)
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[int]:
    """A process that maps a file with a name made to harm a terminal."""
    kept = []
    with forked(lambda: kept.append(_map_file(tmp_path / HOSTILE))) as pid:
        (tmp_path / HOSTILE).unlink()
        yield pid


def _on_a_terminal(*args: object) -> str:
    """What fastdump prints on a terminal of 400 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 50, 400, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "400"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "fastdump", *map(str, args)]
    with ending(*command, stdin=slave, stdout=slave, stderr=slave, env=environment) as running:
        os.close(slave)
        output = b""
        with open(master, "rb", buffering=0) as terminal, contextlib.suppress(OSError):
            while piece := terminal.read(65536):  # EIO when the other side is closed
                output += piece
    assert running.returncode == 0, output
    return output.decode()


def test_hostile_names_on_a_terminal(in_tmp: Path, hostile: int) -> None:
    output = _on_a_terminal("maps", hostile)
    assert ESCAPED in output
    # Nothing but what rich itself sends: bold, dim, and their end.
    assert set(re.findall("\x1b.{0,3}", output)) <= {"\x1b[1m", "\x1b[2m", "\x1b[0m"}
    assert not set(output) & set("\x07\u202e\x9b")


def test_hostile_names_in_a_pipe(in_tmp: Path, hostile: int) -> None:
    outcome = run("maps", hostile)
    assert outcome.code == 0
    assert ESCAPED in outcome.out
    assert all(c.isprintable() or c == "\n" for c in outcome.out)


def test_hostile_names_in_json(in_tmp: Path, hostile: int) -> None:
    outcome = run("maps", hostile, "--json")
    assert outcome.out.isascii()
    paths = [region["path"] for region in json.loads(outcome.out)["regions"]]
    assert any(path.endswith(HOSTILE + " (deleted)") for path in paths)


def test_hostile_names_of_the_output(in_tmp: Path, target: targets.Target) -> None:
    outcome = run("dump", target.pid, "-o", f"{HOSTILE}/out")
    check_refused(outcome, 7, ESCAPED)
    assert _on_a_terminal("dump", target.pid, "-o", HOSTILE).count(ESCAPED) == 1
