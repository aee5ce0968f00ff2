"""The command line. Each command's file is imported only when it is called."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import signal
import sys
import warnings
from types import FrameType
from typing import Any, NoReturn, TextIO

import click

from fastdump import __version__
from fastdump.cli import standard_output
from fastdump.errors import (
    EXIT_INTERRUPTED,
    FastdumpError,
    OutputFailed,
    RuleWarning,
    UsageError,
    output_failed,
    unforeseen,
)
from fastdump.text import printable

# The largest block that comes and goes often: a frame of 4 MiB, and what it was unpacked from.
_KEPT = 8 << 20

# Set by the code of `fastdump completion`: what the shell asks for.
COMPLETE = "_FASTDUMP_COMPLETE"

_COMMANDS = {
    "maps": "Show every region of a process, and what would be dumped of it.",
    "dump": "Dump the memory of a live process.",
    "strings": "Print the printable strings in the memory of a process, a dump, or a file.",
    "search": "Find patterns in the memory of a process, a dump, or a file, as grep does.",
    "hexdump": "Show the memory of a process or a dump as hexdump -C does.",
    "why": "Tell what fills the memory of a process or a dump, and which module put it there.",
    "report": "Write one HTML page: maps of the memory, and what `why` tells.",
    "leaks": "Tell which chunks of malloc nothing in the program leads to any more.",
    "diff": "Tell what grew between two sources, or pages that `why --save` wrote.",
    "info": "Tell what a process, a core or a dump is, and whether it is whole.",
    "extract": "Write a dump in another format, or a range of memory as plain bytes.",
    "bench": "Measure how fast this machine reads, scans, compresses and writes memory.",
    "completion": "Print what makes bash, zsh or fish complete fastdump's commands.",
    "demo": "See it work: a process that leaks, its map, a dump, and the leak found.",
}


class _Commands(click.Group):
    """Commands by name; the file of one is read when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"fastdump.cli.{name}_command")
        importlib.import_module("fastdump._native").keep_freed(_KEPT)
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_Commands,
    epilog="Exit codes: 0 complete; 1 nothing found (search); 2 usage; 3 done, but with gaps that "
    "were not expected; 4 target gone or changed; 5 no permission; 6 corrupt input; "
    "7 output failed; 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="fastdump")
def cli() -> None:
    """Dump the memory of a live Linux process: fast, complete, and without harm to it."""


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def fail(error: FastdumpError) -> NoReturn:
    """Say what happened and what to try, on two lines, and exit."""
    from fastdump.cli.options import complain

    complain(error)
    raise SystemExit(error.exit_code)


def _open_standard_streams() -> None:
    """What the shell has closed (``>&-``) would be the number of the next file that we open."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if fd == 1 else os.O_RDWR)  # writing to 1 fails
    standard_output.name_its_errors()
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")


_show_as_python_does = warnings.showwarning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """``warnings.showwarning``: what a user is warned of is one line."""
    if issubclass(category, RuleWarning):
        click.echo(f"fastdump: {printable(str(message))}", err=True)
    else:
        _show_as_python_does(message, category, filename, lineno, file, line)


def main(args: list[str] | None = None) -> Any:
    """The entry point: runs a command, and turns every end into its exit code."""
    try:
        # The interpreter's last collections would look at every object of every module, which is a
        # tenth of a short command, to free what the kernel frees anyway.
        atexit.register(gc.freeze)
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGHUP, _interrupt)
        _open_standard_streams()
        warnings.showwarning = _show_warning
        if COMPLETE in os.environ:
            from click.shell_completion import shell_complete

            raise SystemExit(shell_complete(cli, {}, "fastdump", COMPLETE, os.environ[COMPLETE]))
        # Not cli.main(): it has ends of its own for a broken pipe and for Ctrl-C.
        with cli.make_context("fastdump", sys.argv[1:] if args is None else args) as context:
            code = cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        code = end.exit_code
    except FastdumpError as error:
        fail(error)
    except click.UsageError as error:
        error.show()
        raise SystemExit(UsageError.exit_code) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(UsageError.exit_code) from None
    except (KeyboardInterrupt, click.Abort):
        click.echo("fastdump: interrupted", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:  # `| head`: end quietly, as the reader did
        standard_output.discard()
        raise SystemExit(OutputFailed.exit_code) from None
    except OSError as error:
        if error.filename != standard_output.NAME:
            fail(unforeseen(error))
        standard_output.discard()
        fail(output_failed(standard_output.NAME, error))
    raise SystemExit(code if isinstance(code, int) else 0)
