"""Write manual pages, which click-man makes of the text of ``--help``.

    setup_man.py MODULES FOLDER

Run by setuptools through ``setup.py``, with the modules just built.
"""

import sys
from inspect import cleandoc
from pathlib import Path

import click
from click_man.core import write_man_pages


def roff(text: str) -> str:
    """Text as groff_man(7) wants it; what click is not to wrap (``\\b``) stays as it is too."""
    text = cleandoc(text).replace("\\", "\\e").replace("-", "\\-")
    paragraphs = [part.strip("\n") for part in text.split("\n\n")]
    return "\n\n".join(
        f".nf\n{part.removeprefix(chr(8)).lstrip(chr(10))}\n.fi" if part.startswith("\b") else part
        for part in paragraphs
    )


def prepare(command: click.Command, short: str) -> None:
    """Make its texts those of a manual page."""
    command.short_help = roff(short).rstrip(".")
    command.help = roff("\n\n".join(map(cleandoc, filter(None, (command.help, command.epilog)))))
    for param in command.params:
        if isinstance(param, click.Option) and param.help:
            param.help = roff(param.help)


def main(modules: str, folder: Path) -> None:
    # Not by PYTHONPATH: pip drops from it what an editable install has in its .pth.
    sys.path.insert(0, modules)
    from fastdump import __version__
    from fastdump.cli import _COMMANDS, cli

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.1"):  # of commands that are gone
        old.unlink()
    context = click.Context(cli)
    for name, short in _COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        prepare(command, short)
        cli.add_command(command)  # click-man knows none that are imported when called
    prepare(cli, "dump and scan the memory of a live Linux process")
    write_man_pages("fastdump", cli, version=__version__, target_dir=folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
