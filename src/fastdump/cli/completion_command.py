"""``fastdump completion``: the code that a shell reads to complete fastdump's commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from fastdump.cli import COMPLETE, cli


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print what makes SHELL complete commands, options, pids and names of regions.

    \b
    bash  source <(fastdump completion bash)       in ~/.bashrc
    zsh   source <(fastdump completion zsh)        in ~/.zshrc, behind compinit
    fish  fastdump completion fish | source        in ~/.config/fish/config.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "fastdump", COMPLETE).source())
