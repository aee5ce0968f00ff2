"""``fastdump demo``: the whole job on a process that leaks, in a few seconds."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from fastdump.errors import FastdumpError
from fastdump.text import printable, size

# A cache that nobody empties. It ends with its standard input, so it cannot outlive us.
_LEAK = """
import sys
cache = {}
for i in range(100_000):
    key = f"{i * 2654435761 % 2**64:016x}"
    cache[key] = f"session {key} user=user{i}@example.com cart=[{i % 7} items] leaked by demo.py"
print("ready", flush=True)
sys.stdin.read()
"""
# Printable ASCII and tab, as strings(1) has it.
_STRING = re.compile(rb"[\t\x20-\x7e]{8,}")
_VARIABLE = re.compile(rb"[0-9a-f]{8,}|[0-9]+")
_BLOCK = 1 << 20


@click.command(name="demo")
def command() -> None:
    """See it work: start a process that leaks, show its map, dump it, find what leaked."""
    with tempfile.TemporaryDirectory(prefix="fastdump-demo-") as folder, _leaking() as pid:
        dump = Path(folder) / f"{pid}.core.lz4"
        click.echo(f"A Python process leaks sessions: pid {pid}. You are not told why.\n")
        _run("maps", str(pid), "--sort", "resident", lines=9)
        _run("dump", str(pid), "-o", str(dump))
        click.echo("What fills the dump, its strings with numbers left out, by total bytes:")
        for template, (length, count) in _top_strings(dump):
            text = printable(template.decode("ascii"))
            click.echo(f"  {size(length):>9}  {count:>8} times  {text[:96]}")
    click.echo(
        "\nThe first line is the leak. The dump and the process are gone again.\n"
        "Now one of yours (as root, or as the user that it runs as):\n"
        "  fastdump maps PID --sort resident     where its memory is\n"
        "  fastdump dump PID --plan              what a dump would read, write and cost\n"
        "  fastdump dump PID                     PID.core.lz4; it is not stopped\n"
        "  lz4 -d PID.core.lz4 && gdb -c PID.core    look at it with any tool that reads cores\n"
    )


@contextlib.contextmanager
def _leaking() -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", _LEAK], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout
        if process.stdout.readline() != b"ready\n":
            raise FastdumpError("the process of the demo did not start")
        yield process.pid
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def _run(*args: str, lines: int | None = None) -> None:
    """Run one of our own commands as a user would, and show it."""
    click.echo(f"$ fastdump {' '.join(args)}")
    result = subprocess.run(
        [sys.executable, "-m", "fastdump", *args],
        stdout=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    shown = result.stdout.splitlines()
    click.echo("\n".join(shown[:lines]))
    if lines and len(shown) > lines:
        click.echo(f"... {len(shown) - lines} more lines")
    click.echo()
    if result.returncode:
        raise FastdumpError(f"fastdump {args[0]} ended with exit code {result.returncode}")


def _top_strings(dump: Path) -> list[tuple[bytes, tuple[int, int]]]:
    """The strings of a dump that take most bytes, alike but for numbers: bytes and count."""
    import lz4.frame

    found: Counter[bytes] = Counter()
    length: Counter[bytes] = Counter()
    with lz4.frame.open(dump, "rb") as core:
        while block := core.read(_BLOCK):
            for text in _STRING.findall(block):
                template = _VARIABLE.sub(b"#", text)
                found[template] += 1
                length[template] += len(text)
    return [(text, (total, found[text])) for text, total in length.most_common(3)]
