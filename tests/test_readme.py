"""README: its commands exist, and its two set-up lines are the ones CI runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastdump.cli import _COMMANDS, cli
from fastdump.dump import FORMATS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FENCED = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
COMMANDS = [line for line in FENCED if line.startswith("fastdump ")]


def test_two_lines_set_everything_up() -> None:
    lines = [line for line in FENCED if ".ci/setup" in line]
    assert lines == [
        "bash .ci/setup && .venv/bin/fastdump demo",
        "bash .ci/setup test && .venv/bin/python -m pytest",
    ]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_understood(line: str) -> None:
    """Each is parsed to its end: only the process, or the dump, does not exist."""
    words = shlex.split(line.split("|")[0], comments=True)[1:]
    words = ["4194305" if word == "PID" else word for word in words]  # above PID_MAX_LIMIT
    result = CliRunner().invoke(cli, words)
    missing = "no process 4194305", "cannot read app.core"
    assert any(text in str(result.exception) for text in missing), result.output


def test_readme_knows_every_format_and_command() -> None:
    for name in FORMATS:
        assert f"| `{name}`" in README
    for name in _COMMANDS:
        assert f"fastdump {name}" in README


def test_links_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
