"""``fastdump demo``: the whole job on a process that leaks, in a few seconds."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from fastdump.errors import FastdumpError

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


@click.command(name="demo")
def command() -> None:
    """See it work: start a process that leaks, show its map, dump it, find what leaked."""
    with tempfile.TemporaryDirectory(prefix="fastdump-demo-") as folder, _leaking() as pid:
        dump = Path(folder) / f"{pid}.core.lz4"
        click.echo(f"A Python process leaks sessions: pid {pid}. You are not told why.\n")
        _run("maps", str(pid), "--sort", "resident", lines=9)
        _run("dump", str(pid), "-o", str(dump))
        click.echo("What fills it: strings that take the most bytes, numbers as #.\n")
        _run("strings", str(pid), "--top", "3", "-n", "8")
    click.echo(
        "The first row is the leak. The dump and the process are gone again.\n"
        "Now one of yours (as root, or as the user that it runs as):\n"
        "  fastdump maps PID --sort resident     where its memory is\n"
        "  fastdump dump PID --plan              what a dump would read, write and cost\n"
        "  fastdump strings PID --top 20         what fills it; nothing is written\n"
        "  fastdump dump PID                     PID.core.lz4; it stops for milliseconds\n"
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
