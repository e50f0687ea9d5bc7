"""`mcodec completion`: the script with which a shell completes verbs, options and file names."""

from __future__ import annotations

import click


@click.command(short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash  mcodec completion bash > ~/.local/share/bash-completion/completions/mcodec
    zsh   mcodec completion zsh > "${fpath[1]}/_mcodec"
    fish  mcodec completion fish > ~/.config/fish/completions/mcodec.fish
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    if script is None:
        raise click.UsageError(f"this version of click has no completion for {shell}")
    click.echo(script(context.find_root().command, {}, "mcodec", "_MCODEC_COMPLETE").source())
