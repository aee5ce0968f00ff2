"""The command line. Each command's file is imported only when it is called."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

import click

from fastdump import __version__
from fastdump.errors import EXIT_INTERRUPTED, FastdumpError, UsageError
from fastdump.text import printable

_COMMANDS = {
    "maps": "Show every region of a process, and what would be dumped of it.",
    "dump": "Dump the memory of a live process.",
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
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_Commands,
    epilog="Exit codes: 0 complete; 2 usage; 3 done, but with gaps that were not expected; "
    "4 target gone or changed; 5 no permission; 6 corrupt input; 7 output failed; "
    "130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="fastdump")
def cli() -> None:
    """Dump the memory of a live Linux process: fast, complete, and without harm to it."""


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def fail(error: FastdumpError) -> NoReturn:
    """Say what happened and what to try, on two lines, and exit."""
    click.echo(f"fastdump: {printable(str(error))}", err=True)
    if error.hint:
        click.echo(f"  hint: {printable(error.hint)}", err=True)
    raise SystemExit(error.exit_code)


def main(args: list[str] | None = None) -> Any:
    """The entry point: runs a command, and turns every end into its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        code = cli.main(args, standalone_mode=False)
        sys.stdout.flush()
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(7) from None
    raise SystemExit(code if isinstance(code, int) else 0)
