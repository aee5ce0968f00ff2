"""Registers in cores: debuggers show each thread of a stopped process as in gcore's core."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import targets
from test_real import NODE_TARGET, PYTHON_TARGET, program

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="ptrace of any process needs root")
THREADS = 200

JAVA_TARGET = """
public class Target {
    static void deep(int frames) throws Exception {
        if (frames > 0) { deep(frames - 1); return; }
        Thread.sleep(86400000);
    }
    public static void main(String[] arguments) throws Exception {
        for (int i = 0; i < 20; i++) {
            int frames = i;
            Thread thread = new Thread(() -> { try { deep(frames); } catch (Exception e) { } });
            thread.setDaemon(true);
            thread.start();
            while (thread.getState() != Thread.State.TIMED_WAITING) Thread.yield();
        }
        System.out.println("ready");
        System.in.read();
    }
}
"""


class Stopped(NamedTuple):
    """A process that has stopped, and the cores of it by who took them."""

    name: str
    pid: int
    exe: str
    cores: dict[str, Path]


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


def start(name: str, folder: Path) -> subprocess.Popen[bytes]:
    """One that has printed that it is ready."""
    if name == "c++":
        command = [str(targets.build("crowd")), str(THREADS)]
    elif name == "rust":
        rustc = shutil.which("rustc")
        if not rustc:
            pytest.skip("rustc is not installed")  # it is large, so CI need not have it
        command = [str(folder / "shapes")]
        source = str(targets.HERE / "shapes.rs")
        subprocess.run([rustc, "-g", "-o", command[0], source], check=True)
    elif name == "python":
        command = [sys.executable, "-c", PYTHON_TARGET]
    elif name == "node":
        command = [program("node"), "-e", NODE_TARGET]
    else:
        javac, java = shutil.which("javac"), shutil.which("java")
        if not javac or not java:
            pytest.skip("a JDK is not installed")  # it is large, so CI need not have it
        (folder / "Target.java").write_text(JAVA_TARGET)
        subprocess.run([javac, "Target.java"], cwd=folder, check=True)
        command = [java, "-Xmx64m", "-cp", str(folder), "Target"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline()
    # Behind the highest pid numbers begin anew: gcore has threads as they began, we by number.
    if min(map(int, os.listdir(f"/proc/{process.pid}/task"))) < process.pid:
        process.kill()
        process.communicate()
        return start(name, folder)
    return process


@pytest.fixture(scope="module", params=["c++", "rust", "python", "node", "java"])
def stopped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stopped]:
    program("gdb")
    folder = tmp_path_factory.mktemp(request.param)
    process = start(request.param, folder)
    try:
        stop(process.pid)
        cores = {}
        for pause, format in (("freeze", "core"), ("fork!", "core"), ("fork!", "lz4")):
            core = folder / f"{pause.rstrip('!')}.{format}"
            command = [sys.executable, "-m", "fastdump", "dump", str(process.pid), "-q"]
            command += ["-f", format, "-o", str(core), "--pause", pause]
            subprocess.run(command, check=True)
            if format == "lz4":
                core = core.rename(folder / "fork.core.lz4")
                subprocess.run(["lz4", "-dq", str(core), str(folder / "packed.core")], check=True)
                core = folder / "packed.core"
            cores[core.stem] = core
        assert Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        exe = os.readlink(f"/proc/{process.pid}/exe")
        subprocess.run(
            ["gcore", "-o", "gcore", str(process.pid)],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        cores["gcore"] = folder / f"gcore.{process.pid}"
        yield Stopped(request.param, process.pid, exe, cores)
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(folder)


THREADS_AND_FRAMES = ("", "info threads", "thread apply all bt 60")  # "": when it opens the core
REGISTERS = ("info registers", "info all-registers")
MAPPINGS, MINE = "info proc mappings", "thread apply all print mine"

Ask = Callable[[str], dict[str, str]]


@pytest.fixture(scope="module")
def gdb(stopped: Stopped) -> Ask:
    """What gdb prints of the core that somebody took, by command; it is started once for each."""
    commands = (*THREADS_AND_FRAMES[1:], *REGISTERS, MAPPINGS)
    if stopped.name == "c++":
        commands += (MINE,)

    @functools.cache
    def ask(who: str) -> dict[str, str]:
        words = ["gdb", "-batch", "-nx", "-iex", "set debuginfod enabled off"]
        for command in commands:
            words += ["-ex", "echo \\n= next =\\n", "-ex", command]
        done = subprocess.run(
            [*words, stopped.exe, str(stopped.cores[who])], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=True,
        )  # fmt: skip
        texts = done.stdout.decode(errors="replace").split("\n= next =\n")
        found = dict(zip(("", *commands), texts, strict=True))
        # gcore leaves the command out where it is long, and it may have many lines.
        found[""] = re.sub(r"^Core was generated by .*?(?=^#0 )", "", found[""], flags=re.M | re.S)
        return found

    return ask


@pytest.fixture(scope="module")
def eu_stack(stopped: Stopped) -> Callable[[str], list[str]]:
    """The frames that eu-stack prints of the core that somebody took."""

    @functools.cache
    def frames(who: str) -> list[str]:
        command = [program("eu-stack"), "--core", str(stopped.cores[who]), "-n", "60"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return done.stdout.decode(errors="replace").splitlines()[1:]

    return frames


@pytest.mark.parametrize("who", ["freeze", "fork", "packed"])
def test_threads_and_backtraces_as_with_gcore(gdb: Ask, who: str) -> None:
    found, expected = gdb(who), gdb("gcore")
    assert len(re.findall(r"^Thread \d+", expected[THREADS_AND_FRAMES[-1]], re.M)) >= 1
    for command in THREADS_AND_FRAMES:
        assert found[command] == expected[command]


@pytest.mark.parametrize("who", ["freeze", "fork"])
def test_all_registers_as_with_gcore(gdb: Ask, who: str) -> None:
    found, expected = gdb(who), gdb("gcore")
    for command in REGISTERS:
        assert re.search(r"^r?sp ", expected[command], re.M)
        assert found[command] == expected[command]
    # NT_FILE, where the executable comes first.
    assert "Mapped address spaces" in expected[MAPPINGS]
    assert set(found[MAPPINGS].splitlines()) == set(expected[MAPPINGS].splitlines())


@pytest.mark.parametrize("who", ["freeze", "fork"])
def test_eu_stack_agrees(eu_stack: Callable[[str], list[str]], who: str) -> None:
    found, expected = eu_stack(who), eu_stack("gcore")
    assert sum(line.startswith("TID ") for line in expected) >= 1
    assert found == expected


@pytest.mark.parametrize("who", ["freeze", "fork"])
def test_thread_local_variables(stopped: Stopped, gdb: Ask, who: str) -> None:
    if stopped.name != "c++":
        pytest.skip("only the C++ program has some that are known")
    values = sorted(int(value) for value in re.findall(r"^\$\d+ = (\d+)$", gdb(who)[MINE], re.M))
    assert values == list(range(THREADS + 1))
