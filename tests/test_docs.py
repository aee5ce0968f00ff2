"""The site builds without a warning, and its references have all that there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

import fastdump
from fastdump.cli import _COMMANDS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},  # an advertisement of mkdocs-material
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def _text(page: Path) -> str:
    return " ".join(unescape(re.sub("<[^>]*>", "", page.read_text())).split())


def test_the_reference_of_commands(site: Path) -> None:
    text = _text(site / "reference/cli/index.html")
    for name in _COMMANDS:
        assert f"fastdump {name} [OPTIONS]" in text
    assert "--max-pause TIME End a freeze after TIME" in text


def test_the_reference_of_python(site: Path) -> None:
    page = (site / "reference/python/index.html").read_text()
    for name, module in fastdump._MODULES.items():
        assert f'id="fastdump.{module}.{name}"' in page
    assert ":func:" not in page


def test_readme_is_the_first_page(site: Path) -> None:
    page = (site / "index.html").read_text()
    assert 'href="strings/"' in page
    assert 'href="docs/' not in page
