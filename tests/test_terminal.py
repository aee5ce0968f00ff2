"""What comes from a target is never taken as escape codes or markup: by each command, on terminals
of several kinds and in a pipe."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

import targets
from fastdump.cli import _COMMANDS
from hostile import SEQUENCE, hostile

FASTDUMP = [sys.executable, "-m", "fastdump"]
# Threads wait for it: pytest's own limit would not end them.
LIMITED = ["timeout", "--foreground", "100", *FASTDUMP]
# PID, DUMP (of it), PAGE (of `why`, of less), and OUT, a new file.
RUNS = {
    "maps": ["PID"],
    "dump": ["PID --plan", "PID -o OUT"],
    "strings": ["PID", "PID --top 20"],
    "search": ["PID behind -C 32"],
    "hexdump": ["PID [heap] -n 4K --follow-pointers"],
    "why": ["PID"],
    "leaks": ["PID"],
    "report": ["PID -o OUT"],
    "diff": ["PAGE PID"],
    "info": ["PID", "DUMP --regions"],
    "extract": ["DUMP -o OUT"],
    "bench": ["PID --seconds 0.5"],
    "completion": ["bash"],
    "demo": [""],
}
# What shows the path of the program, or the text that it holds.
SHOWN = {"maps", "strings", "search", "hexdump", "why", "diff", "info"}
# Of a dump whose manifest gives the reason of a gap.
GAPS = ["hexdump BROKEN [heap]", "strings BROKEN", "search BROKEN behind", "info BROKEN"]
GAPS += ["why BROKEN", "report BROKEN --force", "extract BROKEN [heap] -o bytes --force"]
REASON = SEQUENCE.decode() + "[bold]"


class Screen(NamedTuple):
    """Where output goes; ``columns`` None: into a pipe."""

    columns: int | None
    environment: dict[str, str]
    escapes: str  # of fastdump's own that may be there: a regular expression


_STYLES = r"\x1b\[[012]m"
_CURSOR = r"\r?\x1b\[(?:2K|1A)|\x1b\[\?25[hl]"
SCREENS = {
    "pipe": Screen(None, {"TERM": "xterm-256color"}, r"(?!)"),
    "wide": Screen(
        200, {"TERM": "xterm-256color"}, rf"{_STYLES}|{_CURSOR}|\x1b\[(39|[39]\d|38;5;\d+)m"
    ),
    "narrow": Screen(40, {"TERM": "xterm", "NO_COLOR": "1"}, rf"{_STYLES}|{_CURSOR}"),
    "dumb": Screen(0, {"TERM": "dumb"}, r"(?!)"),
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the words in capitals of RUNS stand for; the folder is the current one."""
    folder = tmp_path_factory.mktemp("hostile")
    before = os.getcwd()
    os.chdir(folder)
    try:
        with targets.start("hostile", "plain") as plain:
            _run("why", str(plain.pid), "--save", "page.json")
        with hostile(folder) as pid:
            _run("dump", str(pid), "-o", "dump.core.lz4")
            _run("dump", str(pid), "-f", "raw", "-o", "broken")
            manifest = json.loads(Path("broken/manifest.json").read_text())
            heap = next(r for r in manifest["regions"] if r["label"] == "heap")
            gap = {"start": heap["start"], "end": heap["end"], "reason": REASON, "errno": 0}
            manifest["gaps"] = [gap]
            Path("broken/manifest.json").write_text(json.dumps(manifest))
            yield {
                "PID": str(pid),
                "DUMP": "dump.core.lz4",
                "BROKEN": "broken",
                "PAGE": "page.json",
            }
    finally:
        os.chdir(before)


def _run(*args: str) -> None:
    subprocess.run([*FASTDUMP, *args], check=True, stdout=subprocess.DEVNULL)


def _show(args: list[str], screen: Screen) -> tuple[int, bytes]:
    """Run fastdump there: its exit code, and all that it writes."""
    unset = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
    env = {k: v for k, v in os.environ.items() if k not in unset} | screen.environment
    if screen.columns is None:
        result = subprocess.run([*LIMITED, *args], env=env, capture_output=True)
        return result.returncode, result.stdout + result.stderr
    ours, its = pty.openpty()
    lines = 24 if screen.columns else 0
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", lines, screen.columns, 0, 0))
    with subprocess.Popen([*LIMITED, *args], env=env, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        parts = []
        try:
            while part := os.read(ours, 65536):
                parts.append(part)
        except OSError:  # EIO: nobody has it open any more
            pass
        os.close(ours)
    return process.returncode, b"".join(parts).replace(b"\r\n", b"\n")


def test_every_command_is_tested() -> None:
    assert set(RUNS) == set(_COMMANDS)


def _check(output: bytes, screen: Screen, allowed: str = "") -> str:
    """The text of an output, in which no control code is but our own."""
    text = re.sub(screen.escapes, "", output.decode())
    assert {c for c in text if not c.isprintable() and c not in "\n" + allowed} == set()
    return text


@pytest.mark.parametrize(("command", "args"), [(c, a) for c, runs in RUNS.items() for a in runs])
def test_only_our_own_escape_codes_come_out(
    words: dict[str, str], tmp_path: Path, command: str, args: str
) -> None:
    def show(screen: str) -> tuple[int, bytes]:
        here = words | {"OUT": str(tmp_path / screen)}
        return _show([command, *(here.get(word, word) for word in args.split())], SCREENS[screen])

    screens = ["wide"] if command == "demo" else SCREENS  # its commands write into a pipe anyway
    with ThreadPoolExecutor() as pool:
        shown = dict(zip(screens, pool.map(show, screens), strict=True))
    for screen, (code, output) in shown.items():
        assert code == 0, (screen, output)
        # A tab is graphic to GNU strings.
        text = _check(output, SCREENS[screen], allowed="\t" if command == "strings" else "")
        if command in SHOWN:
            assert "[boldred]" in "".join(text.split()), f"read as markup: {screen}"


@pytest.mark.parametrize("line", GAPS)
def test_reasons_of_gaps_are_text(words: dict[str, str], line: str) -> None:
    code, output = _show([words.get(word, word) for word in line.split()], SCREENS["pipe"])
    assert code == (0 if line.startswith("info") else 3), output
    assert "\\x1b[35;45m[bold]" in _check(output, SCREENS["pipe"], allowed="\t")


@pytest.mark.parametrize("columns", [1, 40, 79, 120, 500])
def test_no_table_loses_text_for_want_of_room(words: dict[str, str], columns: int) -> None:
    """Whatever the width, each address and label is there in one piece."""
    with open(f"/proc/{words['PID']}/maps", "rb") as file:
        ranges = [line.split()[0].decode().split("-") for line in file]
    addresses = {f"{int(text, 16):x}" for pair in ranges for text in pair}
    screen = Screen(columns, {"TERM": "xterm"}, "")
    code, output = _show(["maps", words["PID"]], screen)
    assert code == 0
    found = output.decode()
    assert {address for address in addresses if address not in found} == set()
    assert all(found.count(label) for label in ("executable", "library", "anonymous", "stack"))
