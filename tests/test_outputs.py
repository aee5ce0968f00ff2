"""Pages and profiles: whole under their name, or not at all; what was there before stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import targets
from fastdump.errors import OutputFailed
from fastdump.outputs import check_output
from test_errors import check_refused, root_only, run
from test_pprof import decoded

OUTPUTS = {
    "save": ("why", "--no-strings", "--save"),
    "pprof": ("why", "--no-strings", "--pprof"),
    "report": ("report", "--no-strings", "-o"),
}
outputs = pytest.mark.parametrize("command", OUTPUTS.values(), ids=OUTPUTS)


@pytest.fixture(scope="module")
def target() -> Iterator[targets.Target]:
    with targets.start("objects") as found:
        yield found


def arguments(command: Sequence[str], target: targets.Target, name: str) -> list[str]:
    return [command[0], str(target.pid), *command[1:], name]


@outputs
def test_an_existing_file_is_replaced_if_asked(
    in_tmp: Path, target: targets.Target, command: Sequence[str]
) -> None:
    Path("out").write_text("mine")
    refused = run(*arguments(command, target, "out"))
    assert (refused.code, refused.out) == (7, "")
    assert refused.err.startswith("fastdump: out exists\n  hint: --force")
    assert Path("out").read_text() == "mine"
    assert run(*arguments(command, target, "out"), "--force").code == 0
    assert os.listdir() == ["out"]
    assert Path("out").stat().st_mode & 0o777 == 0o600
    assert Path("out").stat().st_size > 500


@root_only
@outputs
def test_a_full_disk_leaves_what_was_there(
    in_tmp: Path, target: targets.Target, command: Sequence[str]
) -> None:
    disk = in_tmp / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8K", "none", disk]).returncode:
        pytest.skip("may not mount")
    try:
        (disk / "out").write_text("mine")
        (disk / "filler").write_bytes(bytes(4096))
        done = run(*arguments(command, target, f"{disk}/out"), "--force")
        assert (done.code, done.out) == (7, "")
        assert "No space left on device" in done.err
        assert sorted(os.listdir(disk)) == ["filler", "out"]
        assert (disk / "out").read_text() == "mine"
    finally:
        subprocess.run(["umount", disk], check=True)


@outputs
def test_a_full_standard_output(
    in_tmp: Path, target: targets.Target, command: Sequence[str]
) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastdump", *arguments(command, target, "-")],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 7
    assert "No space left on device" in done.stderr
    assert os.listdir() == []


# Runs fastdump, which gets a signal when all is written, and nothing renamed. What a shell starts
# in the background ignores SIGINT.
ENDING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from fastdump.cli import main
from fastdump.output import PartFile
PartFile._sync = lambda self: os.kill(os.getpid(), int(sys.argv[1]))
main(sys.argv[2:])
"""


@outputs
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_one_that_is_ended_leaves_nothing_that_looks_whole(
    in_tmp: Path, target: targets.Target, command: Sequence[str], number: int
) -> None:
    words = [*arguments(command, target, "out"), "--force"]
    for before in ([], ["out"]):
        for name in before:
            Path(name).write_text("mine")
        ended = subprocess.run([sys.executable, "-c", ENDING, str(int(number)), *words])
        assert ended.returncode != 0
        left = before + ["out.part"] * (number == signal.SIGKILL)
        assert sorted(os.listdir()) == left
        assert all(Path(name).read_text() == "mine" for name in before)
    assert run(*words).code == 0
    assert os.listdir() == ["out"]
    assert Path("out").stat().st_size > 500


def test_standard_output_has_the_file_and_nothing_else(
    target: targets.Target, tmp_path: Path
) -> None:
    page = run("why", target.pid, "--no-strings", "--save", "-")
    assert (page.code, page.err) == (0, "")
    assert json.loads(page.out)["version"] == 1
    command = [sys.executable, "-m", "fastdump", "why", str(target.pid), "--pprof", "-"]
    profile = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    types, _ = decoded(profile, tmp_path)
    assert types == "chunks/count bytes/bytes"


@pytest.mark.parametrize(
    "options",
    [["--save", "-", "--pprof", "-"], ["--save", "-", "--json"], ["--pprof", "-", "--folded"]],
)
def test_standard_output_has_one_of_them(
    in_tmp: Path, target: targets.Target, options: list[str]
) -> None:
    check_refused(run("why", target.pid, *options), 2, "standard output")


@outputs
def test_a_terminal_gets_no_file(target: targets.Target, command: Sequence[str]) -> None:
    master, slave = os.openpty()
    with open(master, "rb"), open(slave, "wb") as terminal:
        done = subprocess.run(
            [sys.executable, "-m", "fastdump", *arguments(command, target, "-")],
            stdout=terminal,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert "terminal" in done.stderr


def test_no_device_or_pipe_is_replaced(in_tmp: Path) -> None:
    """Not even by force: as root that would be the end of /dev/null."""
    for device in ("/dev/null", "/dev/full"):
        with pytest.raises(OutputFailed, match="no regular file"):
            check_output(device, force=True)
    os.mkfifo("pipe")
    with pytest.raises(OutputFailed, match="no regular file"):
        check_output("pipe", force=True)
