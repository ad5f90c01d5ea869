"""`headrace completion`: a script that teaches a shell the commands and options."""

from __future__ import annotations

from typing import Final

import click

from headrace.cli import output
from headrace.cli.app import COMPLETION_VARIABLE, PROGRAM, headrace
from headrace.errors import HeadraceError

SHELLS: Final = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    Bash:  eval "$(headrace completion bash)"    in ~/.bashrc
    Zsh:   eval "$(headrace completion zsh)"     in ~/.zshrc
    Fish:  headrace completion fish > ~/.config/fish/completions/headrace.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise HeadraceError(f"there is no completion for {shell}")
    output.write_text(found(headrace, {}, PROGRAM, COMPLETION_VARIABLE).source() + "\n")
