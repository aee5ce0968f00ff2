"""What the site has beyond docs/: pages of the repository, and the references of code."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

import fastdump

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
_OUTSIDE = {  # of docs/, and their names in the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    **{
        path.relative_to(ROOT).as_posix(): f"plots/{path.name}"
        for path in (ROOT / "benchmarks" / "plots").glob("*.svg")
    },
}
_COMMANDS = """# Commands

::: mkdocs-click
    :module: fastdump.cli
    :command: cli
    :prog_name: fastdump
    :depth: 1
"""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add them."""
    pages = {name: (ROOT / path).read_text() for path, name in _OUTSIDE.items()}
    pages["reference/cli.md"] = _COMMANDS
    pages["reference/python.md"] = "# Python\n\n" + "".join(
        f"::: fastdump.{module}.{name}\n\n" for name, module in sorted(fastdump._MODULES.items())
    )
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links are those of the repository; of what is not in the site, the text remains."""
    name = page.file.src_uri
    path = next((path for path, own in _OUTSIDE.items() if own == name), f"docs/{name}")

    def in_site(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        found = (ROOT / path).parent.joinpath(target).resolve()
        if not found.exists():
            return link[0]  # --strict complains
        local = found.relative_to(ROOT).as_posix()
        uri = _OUTSIDE.get(local, local.removeprefix("docs/"))
        if files.get_file_from_path(uri) is None:
            return text
        return f"[{text}]({os.path.relpath(uri, Path(name).parent)}{anchor or ''})"

    return re.sub(r"\[([^]\n]+)\]\(([^)#:\s]+)(#[^)]*)?\)", in_site, markdown)
