"""The tutorial: its commands run as printed, and print what it shows."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

TUTORIAL = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"```(sh|text)\n(.*?)```", TUTORIAL, re.DOTALL)
END = "--- end of block {} ---"


def _expression(line: str) -> re.Pattern[str]:
    """What a line of the tutorial stands for: ``...`` for anything, a number for any other."""
    pattern = r"\s+".join(re.escape(word) for word in line.split())
    pattern = re.sub(r"[0-9a-f]{12}|\d(?:[\d,]|\\\.\d)*", "[0-9a-f.,]+", pattern)
    pattern = re.sub(r"\b[KMG]iB\b", "(?:[KMG]i)?B", pattern)
    return re.compile(pattern.replace(r"\.\.\.", ".*"))


def test_every_command_prints_what_the_tutorial_shows(in_tmp: Path) -> None:
    commands = [text for kind, text in BLOCKS if kind == "sh"]
    script = "".join(f"{text}echo {END.format(n)!r}\n" for n, text in enumerate(commands))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with open("output", "w+") as output:
        shell = subprocess.Popen(
            ["bash", "-e"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            shell.communicate(script)
        finally:  # the shop too, wherever it ended
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
        output.seek(0)
        rest = output.read()
    assert shell.returncode == 0, rest
    outputs = []
    for kind, text in BLOCKS:
        if kind == "sh":
            printed, _, rest = rest.partition(END.format(len(outputs)) + "\n")
            outputs.append(printed)
            lines = iter(printed.splitlines())
            continue
        for line in text.splitlines():
            assert any(_expression(line).fullmatch(found.strip()) for found in lines), (
                f"{line!r} is not in, or not in its place of:\n{printed}"
            )
    assert int(outputs[-2]) < 100, "the leak is not mended"
    assert os.listdir() == ["output"]
