"""Completion: what a shell gets for what is typed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import targets
from fastdump.cli import _COMMANDS

FASTDUMP = Path(sys.executable).with_name("fastdump")


def complete(words: str, shell: str = "bash") -> list[str]:
    """The words that may stand for the last of *words*, as the shell's function asks for them."""
    typed = words.split(" ")
    number = {} if shell == "fish" else {"COMP_CWORD": str(len(typed) - 1)}
    if shell == "fish":
        words, number = " ".join(typed[:-1]), {"COMP_CWORD": typed[-1]}
    environment = {**os.environ, "_FASTDUMP_COMPLETE": f"{shell}_complete", "COMP_WORDS": words}
    done = subprocess.run(
        [FASTDUMP], env={**environment, **number}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


def test_bash_completes() -> None:
    """Its function, filled in as by bash itself, in a real one."""
    script = """
        source <(fastdump completion bash)
        COMP_WORDS=(fastdump hexd) COMP_CWORD=1
        function=$(complete -p fastdump | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
        $function fastdump && echo "${COMPREPLY[@]}"
    """
    path = f"{FASTDUMP.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("hexdump\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_code_for_a_shell(shell: str) -> None:
    code = subprocess.check_output([FASTDUMP, "completion", shell], text=True)
    assert f"_FASTDUMP_COMPLETE={shell}_complete" in code
    assert any("maps" in line for line in complete("fastdump ma", shell))


def test_commands_and_options() -> None:
    assert complete("fastdump ") == [f"plain,{name}" for name in _COMMANDS]
    assert complete("fastdump dump --pl") == ["plain,--plan"]
    assert "plain,fork!" in complete("fastdump dump --pause ")


@pytest.mark.parametrize(
    "command", ["maps", "dump", "strings", "search", "why", "leaks", "report", "info", "diff 1"]
)
def test_pids(command: str) -> None:
    with targets.start("exiter", "4K") as target:
        pid = str(target.pid)
        assert f"plain,{pid}" in complete(f"fastdump {command} {pid[:-1]}")
        assert any(pid in line for line in complete(f"fastdump {command} {pid}", "zsh"))


def test_files() -> None:
    assert complete("fastdump info ./app") == ["file,./app"]


@pytest.mark.parametrize("command", ["hexdump", "extract"])
def test_regions(command: str) -> None:
    with targets.start("exiter", "4K") as target:
        assert complete(f"fastdump {command} {target.pid} [h") == ["plain,[heap]"]
        assert complete(f"fastdump {command} {target.pid} libc.") == ["plain,libc.so.6"]
    assert complete(f"fastdump {command} 4194305 [h") == []  # above PID_MAX_LIMIT


def test_names_of_processes_are_words() -> None:
    """A name may hold anything: the shell gets no quotes, breaks or escapes of it."""
    script = "import ctypes; ctypes.CDLL(None).prctl(15, b'\\x1b[31m$(x)\\n`'); print(); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        child.stdout.readline()
        lines = complete(f"fastdump maps {child.pid}", "zsh")
        child.communicate("\n")
    # Behind it come those whose numbers begin with this one.
    assert lines[:3] == ["plain", str(child.pid), "??31m??x???"]
