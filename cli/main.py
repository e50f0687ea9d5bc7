"""The command `mcodec`: the group of verbs, what options without a verb mean, and how every end becomes one line and an exit code.

Exit codes: 0 done, 1 a defect of mcodec itself (please report it), 2 wrong usage or settings, 3 damaged file, 4 file ends too early, 5 unsupported file,
6 file asks for more than the limits allow, 7 unsafe input, 8 compared tensors differ, 74 file system (no such file, disk full, would overwrite),
130 interrupted, 141 the reader of standard output went away. With several inputs the others are still done, and the first failure gives the code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from modelcodec.cli import collecting
from modelcodec.cli.messages import complain
from modelcodec.errors import EXIT_OS_ERROR
from modelcodec.version import VERSION

VERBS = ("compress", "decompress", "info", "compare", "report", "verify", "rebase", "cat", "fit", "push", "pull", "run", "hook", "warmup", "completion")
"""Each is a command in a module of this folder, imported when it is needed: of the same name, where MODULES says no other."""

MODULES = {"report": "report_page"}
"""cli/report.py is about the reports that all verbs print."""

EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141

EPILOG = """\b
Options without a verb mean compress, as in zstd: mcodec -9 FILE, mcodec -d FILE.
Every option can come from the environment: MCODEC_COMPRESS_LEVEL=9, MCODEC_INFO_JSON=1.
NO_COLOR=1 turns colours off.

\b
Exit codes:
  0 done                      1 a defect of mcodec      2 wrong usage or settings
  3 damaged file              4 file ends too early     5 unsupported file
  6 asks beyond the limits    7 unsafe input            8 compared tensors differ
 74 file system             130 interrupted           141 output pipe closed
With several inputs the others are still done; the first failure gives the code."""


class Verbs(click.Group):
    """A group that imports a verb's module when the verb is asked for, and takes options without a verb for `compress`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = getattr(import_module(f"modelcodec.cli.{MODULES.get(cmd_name, cmd_name)}"), cmd_name)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0].startswith("-") and args[0] not in own:
            args = ["compress", *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS and not ctx.resilient_parsing:
            remedy = f"did you mean: mcodec compress {args[0]}" if os.path.exists(args[0]) else f"the verbs are {', '.join(VERBS)}"
            raise click.UsageError(f"no verb {args[0]!r}; {remedy}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        # Both are handled here because click.main would give them exit code 1.
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
        except KeyboardInterrupt as stop:  # with a remedy where there is one
            complain(None, f"interrupted; {stop}" if stop.args else "interrupted")
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            _discard_standard_output()
            ctx.exit(EXIT_PIPE_CLOSED)
        return result


def _discard_standard_output() -> None:
    """Point standard output at nothing, so that the interpreter's last flush does not fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


@click.group(cls=Verbs, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MCODEC"})
@click.version_option(VERSION, "-V", "--version", prog_name="mcodec", message="%(prog)s %(version)s")
def cli() -> None:
    """Compress neural-network checkpoints and restore them byte for byte.

    \b
      mcodec compress model.safetensors             -> model.mcodec.safetensors
      mcodec info model.mcodec.safetensors          what became of each tensor
      mcodec decompress model.mcodec.safetensors    -> model.safetensors
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. `args` without the program's name; the process's own, which is then set up for them, where None."""
    if args is None:
        collecting.rarely()
    try:
        code = cli.main(args, prog_name="mcodec", standalone_mode=False)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "mcodec"
        complain(None, f"{error.format_message()}\nTry '{where} --help'.")
        return error.exit_code
    except click.ClickException as error:
        complain(None, error.format_message())
        return error.exit_code
    except click.Abort:
        complain(None, "interrupted")
        return EXIT_INTERRUPTED
    except OSError as error:
        complain("standard output", error)
        _discard_standard_output()
        return EXIT_OS_ERROR
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
