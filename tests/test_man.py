"""Manual pages: one for each command, without a warning of troff."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastdump.cli import _COMMANDS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, ROOT / "setup_man.py", ROOT / "src", folder], check=True)
    return folder


def shown(page: Path) -> str:
    """As man(1) shows it, in plain characters."""
    nroff = ["nroff", "-man", "-ww", "-Tascii", "-c", page]
    done = subprocess.run(nroff, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return subprocess.run(
        ["col", "-bx"], input=done.stdout, capture_output=True, text=True, check=True
    ).stdout


def test_every_command_has_a_page(pages: Path) -> None:
    names = {page.stem for page in pages.iterdir()}
    assert names == {"fastdump", *(f"fastdump-{name}" for name in _COMMANDS)}
    assert all("NAME" in shown(page) for page in pages.iterdir())


def test_a_page_has_the_options(pages: Path) -> None:
    text = " ".join(shown(pages / "fastdump-dump.1").split())
    assert "--max-pause TIME End a freeze after TIME" in text
    assert "NAME fastdump-dump - Dump the memory of a live process SYNOPSIS" in text


def test_what_troff_would_take_for_its_own(pages: Path) -> None:
    assert r"\u..." in shown(pages / "fastdump-strings.1")
    lines = shown(pages / "fastdump-why.1").splitlines()
    assert "       ledger    every resident byte in one bucket" in lines  # and no filling


def test_the_page_of_all_has_the_exit_codes(pages: Path) -> None:
    text = " ".join(shown(pages / "fastdump.1").split())
    assert "Exit codes: 0 complete; 1 nothing found" in text
    assert "fastdump-search(1)" in text
