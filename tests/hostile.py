"""A process whose names and strings attack the terminal, or the page, that shows them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import targets

# Colours that fastdump itself never uses: where they come out, they came from the target.
SEQUENCE = b"\x1b[35;45m"
NAMES = [
    SEQUENCE + b"first\x1b]0;title\x07",
    b"[bold red]markup[/bold red] [link=http://127.0.0.1/]here[/link]",
    b"new\nline\rreturn\ttab\x08back",
    b"\x9b35;45m C1 \x85\x90",
    "UTF-8 C1 \u009b35;45m \u0085".encode(),
    "right to left \u202e \u2066 \u2028".encode(),
    b"not UTF-8 \xff\xfe",
    b"</script><script>document.title='owned'</script>",
    b"<img src=x onerror=\"document.title='owned'\">",
    b"<!--<script>&lt;b&gt;{{data}}%s{0}",
]
EXE = b"</script><b>program" + SEQUENCE + b"[bold red]\n\xff\x9b35;45m"


@contextlib.contextmanager
def hostile(folder: Path) -> Iterator[int]:
    """Its pid; its program, which owns its heap, lies in *folder*, by a name like the others."""
    exe = os.path.join(os.fsencode(folder), EXE)
    os.makedirs(os.path.dirname(exe), exist_ok=True)
    shutil.copy(targets.build("hostile"), exe)
    with subprocess.Popen(
        [exe, *NAMES], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:  # which ends when its standard input does
        assert process.stdout
        assert process.stdout.readline().endswith(b"}\n")
        yield process.pid
