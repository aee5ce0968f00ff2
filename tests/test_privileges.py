"""docs/privileges.md: its recipes work, and its list of reasons is the one that is printed.

Docker and Kubernetes are made of the same namespaces, roots and capabilities as here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import targets
from fastdump import process
from fastdump._native import PAGE_SIZE
from test_errors import (
    NOBODY,
    become_nobody,
    check_refused,
    checked,
    libc,
    root_only,
    run_as,
)

PAGE = (Path(__file__).parent.parent / "docs" / "privileges.md").read_text()
FASTDUMP = (sys.executable, "-m", "fastdump")
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000
# What a container of Docker has: `docker run --help`, --cap-add.
DOCKER = (
    "--bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,"
    "+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap"
)
# The root of the mount namespace is changed, as runc does; chroot(2) would leave it.
_PIVOT = """
import ctypes, os
libc = ctypes.CDLL(None)
assert libc.pivot_root(b".", b".") == 0
assert libc.umount2(b".", 2) == 0
os.execv("/program", ["/program", "1"])
"""

pytestmark = root_only


# What its files are on, and no other mount namespace has; of the folders of its root and its image.
FILE_SYSTEMS = {
    "tmpfs": 'mount -t tmpfs none "$1" && cp -a "$2"/. "$1" && cd "$1"',
    "overlay": 'mount -t tmpfs none "$1" && cd "$1" && mkdir upper work root && mount -t overlay '
    '-o "lowerdir=$2,upperdir=upper,workdir=work" none root && cd root',
}


@pytest.fixture(scope="module", params=FILE_SYSTEMS)
def container(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The pid, as seen from here, of a process with root, mounts and pids of its own.

    Its files are under names that this host has for other files.
    """
    root, image = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("image")
    program = targets.build("threads")
    libraries = re.findall(r"/\S+", subprocess.check_output(["ldd", program], text=True))
    for path in map(Path, libraries):
        if path.is_absolute() and path.suffix != ":":
            (image / path.parent.relative_to("/")).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, image / path.relative_to("/"))
    shutil.copy(program, image / "program")
    script = f'{FILE_SYSTEMS[request.param]} && exec "$3" -c "$4"'
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    setpriv = ["setpriv", DOCKER + ",+sys_admin"]
    with subprocess.Popen(
        [*unshare, *setpriv, "sh", "-c", script, "sh", root, image, sys.executable, _PIVOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as outside:
        assert outside.stdout
        assert json.loads(outside.stdout.readline())["pid"] == 1
        yield int(Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text())
        outside.kill()


def labels(*command: object) -> set[tuple[str, str]]:
    """The label and the path of each mapped file, by ``maps --json``."""
    found = subprocess.run([*map(str, command), "--json"], stdout=subprocess.PIPE, check=True)
    regions = json.loads(found.stdout)["regions"]
    return {(r["label"], Path(r["path"]).name) for r in regions if r["path"].startswith("/")}


def in_its_pid_namespace(pid: int) -> list[str]:
    """As ``docker run --pid=container:`` does: its pids, and a /proc that shows them."""
    return ["nsenter", "--target", str(pid), "--pid", "unshare", "--mount", "--mount-proc"]


MODULES = {("executable", "program"), ("library", "libc.so.6")}


def test_a_container_from_the_host(container: int) -> None:
    # The names are those in the container: the host's files of these names are others.
    assert labels(*FASTDUMP, "maps", container) >= MODULES


@pytest.mark.parametrize("inside", [False, True], ids=["from the host", "from a container"])
def test_a_container_with_sys_ptrace(container: int, inside: bool) -> None:
    """By /proc/PID/root: map_files needs a capability more."""
    prefix = in_its_pid_namespace(container) if inside else []
    pid = 1 if inside else container
    docker = [*prefix, "setpriv", DOCKER + ",+sys_ptrace"]
    assert labels(*docker, *FASTDUMP, "maps", pid) >= MODULES
    dump = [*docker, *FASTDUMP, "dump", str(pid), "-o", "-"]
    core = subprocess.run(dump, stdout=subprocess.PIPE, check=True).stdout
    assert subprocess.check_output(["lz4", "-dc"], input=core)[:4] == b"\x7fELF"


def test_which_file_is_the_mapped_one(
    request: pytest.FixtureRequest, container: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By /proc/PID/root: map_files has no such range."""
    with process.LiveProcess(container) as target:
        (region, *_) = (r for r in target.regions() if r.path == "/program")
        region = region._replace(end=region.end + PAGE_SIZE)
        os.close(target.open_mapped(region))
        with pytest.raises(OSError, match="another file"):
            target.open_mapped(region._replace(inode=region.inode + 1))
        layer = region._replace(dev="00:00")  # as overlays had it before Linux 6.8
        if request.node.callspec.params["container"] == "overlay":
            os.close(target.open_mapped(layer))
        else:
            with pytest.raises(OSError, match="another file"):
                target.open_mapped(layer)
        fstat = os.fstat  # as on btrfs: the device of a subvolume
        monkeypatch.setattr(
            os, "fstat", lambda fd: os.stat_result((*fstat(fd)[:2], 42, *fstat(fd)[3:]))
        )
        os.close(target.open_mapped(region))


@pytest.mark.parametrize("inside", [False, True], ids=["from the host", "from a container"])
def test_a_container_without_sys_ptrace(in_tmp: Path, container: int, inside: bool) -> None:
    prefix = in_its_pid_namespace(container) if inside else []
    command = [*prefix, "setpriv", DOCKER, *FASTDUMP, "dump", "1" if inside else str(container)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 5
    assert "it has capabilities that you have not" in done.stderr
    assert os.listdir() == []


def test_a_container_with_the_same_capabilities(in_tmp: Path) -> None:
    """Without --cap-add: Docker gives both containers the same."""
    sleeper = ["setpriv", DOCKER, "sh", "-c", "echo; read line"]
    with subprocess.Popen(sleeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:
        assert target.stdout
        target.stdout.readline()
        command = ["setpriv", DOCKER, *FASTDUMP, "dump", str(target.pid), "-o", "-"]
        done = subprocess.run(command, capture_output=True)
        target.kill()
    assert done.returncode == 0, done.stderr


def test_one_capability_and_not_root(in_tmp: Path, container: int) -> None:
    recipe = re.search(r"sudo (setpriv .*?) \\\n +fastdump", PAGE, re.DOTALL)
    assert recipe
    setpriv = recipe[1].replace("\\\n", "").split()
    assert labels(*setpriv, *FASTDUMP, "maps", container) >= MODULES
    done = subprocess.run([*setpriv, *FASTDUMP, "dump", str(container), "-f", "null"])
    assert done.returncode == 0


def test_root_in_a_user_namespace_of_its_own(in_tmp: Path) -> None:
    unshare = [
        "unshare",
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    script = 'sleep infinity & "$@" $! -f null -q; status=$?; kill $!; exit $status'
    done = subprocess.run([*unshare, "sh", "-c", script, "sh", *FASTDUMP, "dump"])
    assert done.returncode == 0


# Reasons


def hide() -> None:
    """Mount /proc so that nobody sees the processes of root."""
    checked(libc.unshare(_CLONE_NEWNS))
    checked(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    checked(libc.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2"))
    become_nobody()


@pytest.mark.parametrize("command", ["maps", "dump"])
def test_hidden(in_tmp: Path, container: int, command: str) -> None:
    check_refused(run_as(hide, command, container), 5, f"process {container}", "hidepid")
    check_refused(run_as(hide, command, 4194305), 4, "no process 4194305")  # above PID_MAX_LIMIT


def _reasons(monkeypatch: pytest.MonkeyPatch, container: int) -> Iterator[str]:
    """Each reason as it is printed: of real refusals, and else of what the kernel might tell."""

    def told(outcome: tuple[int, str, str]) -> str:
        return outcome[2].splitlines()[0].split(": ", 2)[2]

    yield told(run_as(become_nobody, "maps", container))
    yield told(run_as(hide, "maps", container))
    user = ["unshare", "--user", "--map-root-user"]
    command = [*user, *FASTDUMP, "maps", str(container)]
    done = subprocess.run(command, capture_output=True, text=True)
    yield told((done.returncode, done.stdout, done.stderr))

    read = process._read
    ours = process._status("/proc/self")
    me = os.geteuid()

    def of(scope: str = "0", owner: int = me, **fields: str) -> str:
        def pretend(path: str) -> str:
            return scope if path.endswith("yama/ptrace_scope") else read(path)

        monkeypatch.setattr(process, "_read", pretend)
        return process._why(os.getpid(), {**ours, **fields}, owner)

    yield of(owner=NOBODY)
    yield from (of(scope) for scope in "123")
    yield of(TracerPid="123")
    yield of(CapPrm=f"{1 << 63:x}")
    yield of()


def _help(reason: str) -> str:
    """What helps, by the page."""
    found = re.search(rf"^\| `{re.escape(reason)}` \| (.*?) \|$", PAGE, re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize("capabilities", ["+all", "-sys_ptrace"])
def test_outside_of_a_user_namespace_is_what_helps(container: int, capabilities: str) -> None:
    """And no capability: it would be one in our own namespace."""
    command = ["unshare", "--user", "--map-root-user", "setpriv", f"--bounding-set={capabilities}"]
    done = subprocess.run(
        [*command, *FASTDUMP, "maps", str(container)], capture_output=True, text=True
    )
    message, hint = done.stderr.splitlines()
    reason = "it lives in another user namespace"
    assert done.returncode == 5
    assert message.endswith(f": {reason}")
    assert hint == f"  hint: {_help(reason)}"


def test_after_a_reboot_is_what_helps() -> None:
    reason = "Yama allows it to nobody only (kernel.yama.ptrace_scope is 3)"
    assert process._hint(process._status("/proc/self"), reason) == _help(reason)


def test_the_page_has_every_reason(monkeypatch: pytest.MonkeyPatch, container: int) -> None:
    printed = set(_reasons(monkeypatch, container))
    printed = {re.sub(r"(user|process) \d+", r"\1 N", reason) for reason in printed}
    table = re.findall(r"^\| `(.*?)` \|", PAGE, re.MULTILINE)
    assert printed == {re.sub(r"(user|process) \d+", r"\1 N", reason) for reason in table}
