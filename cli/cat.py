"""`mcodec cat`: one tensor, or a slice of it, as .npy; on a terminal as numbers to look at."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelcodec.cli import options
from modelcodec.cli.jobs import each
from modelcodec.cli.messages import is_terminal, printable, say
from modelcodec.cli.options import STANDARD, Voice
from modelcodec.cli.streams import writing

if TYPE_CHECKING:
    from types import EllipsisType

    from numpy.typing import NDArray

Index = tuple["int | slice | EllipsisType", ...]

INTEGER = r"\s*([+-]?\d{1,18})\s*"
OPTIONAL = r"\s*([+-]?\d{1,18})?\s*"
PLACE = re.compile(INTEGER)
RANGE = re.compile(f"{OPTIONAL}:{OPTIONAL}(?::{OPTIONAL})?")


def _tensor_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names for the shell's completion; none where the file cannot be read."""
    from modelcodec import api
    from modelcodec.errors import ModelCodecError

    try:
        with api.open(context.params.get("file", "")) as tensors:
            return [name for name in tensors.keys() if name.startswith(incomplete)]  # noqa: SIM118
    except (ModelCodecError, OSError):
        return []


@click.command(short_help="Write one tensor or a slice of it as .npy.")
@options.file
@click.argument("tensor", metavar="TENSOR[SLICE]", shell_complete=_tensor_names)
@click.option("-o", "--output", type=click.Path(), metavar="PATH", help="Write to this .npy file; without it, or with '-', to standard output.")
@click.option("-f", "--force", is_flag=True, help="Overwrite.")
@options.base
@options.quiet
def cat(file: str, tensor: str, output: str | None, force: bool, base: str | None, quiet: bool) -> int:
    """Write one tensor of FILE, or a slice of it as in 'w[2:5, :]', as .npy. Only the frames that are needed are decoded.

    Standard output gets .npy too, unless it is a terminal: that gets the numbers.
    Where numpy has no dtype of its own (BF16, F8), .npy holds the same bytes as void; numpy.load(...).view(ml_dtypes.bfloat16) makes them numbers again.
    """

    def work(path: str) -> None:
        array = read(path, tensor, base)
        if output in (None, STANDARD) and is_terminal(sys.stdout):
            click.echo(f"{printable(tensor)}  {array.dtype}  {'x'.join(map(str, array.shape)) or 'scalar'}\n{array}")
            return
        write(array, output or STANDARD, overwrite=force)
        if not numpy_knows(array) and not quiet:
            say(f"mcodec: {tensor}: .npy has no {array.dtype}; the bytes are there as {array.dtype.itemsize}-byte voids, view them as ml_dtypes.{array.dtype}")

    return each([file], work, Voice(quiet, verbose=False, json=False))


def read(path: str, wanted: str, base: str | None) -> NDArray[Any]:
    """The tensor named `wanted`, or the slice of it: a name may itself end in brackets, so the whole is tried first."""
    import numpy as np

    from modelcodec import api

    with api.open(path, base=base) as tensors:
        names = set(tensors.keys())
        if wanted in names:
            return tensors.get_tensor(wanted)  # type: ignore[no-any-return]
        name, bracket, index = wanted.rpartition("[")
        if not bracket or not index.endswith("]"):
            name = wanted
        if name not in names:
            close = get_close_matches(name, names, 3)
            remedy = f"did you mean {' or '.join(map(repr, close))}" if close else "mcodec info lists its tensors"
            raise click.UsageError(f"{path} holds no tensor {name!r}; {remedy}")
        view = tensors.get_slice(name)
        try:
            return np.asarray(view[parse_index(index[:-1], wanted)])
        except IndexError as error:
            raise click.UsageError(f"{wanted}: {error}; the shape is {view.get_shape()}") from error


def parse_index(text: str, wanted: str) -> Index:
    """Turn `2:5, :` into what numpy indexing takes: integers, ranges with steps, one ellipsis."""
    index: list[int | slice | EllipsisType] = []
    for part in text.split(","):
        if match := PLACE.fullmatch(part):
            index.append(int(match[1]))
        elif (match := RANGE.fullmatch(part)) and int(match[3] or 1):
            index.append(slice(*(None if bound is None else int(bound) for bound in match.groups())))
        elif part.strip() == "..." and Ellipsis not in index:
            index.append(Ellipsis)
        else:
            raise click.UsageError(f"{wanted}: {part.strip()!r} is no index; an index is like [2:5, :], [0], [..., ::2]")
    return tuple(index)


def numpy_knows(array: NDArray[Any]) -> bool:
    """Whether .npy can say the dtype; it cannot say those of ml_dtypes."""
    return array.dtype.isbuiltin == 1


def write(array: NDArray[Any], destination: str, *, overwrite: bool) -> None:
    """Write the array as .npy to a path, whole or not at all, or to standard output."""
    import numpy as np
    from numpy.lib import format as npy

    from modelcodec.formats.atomic import atomic_file

    stored = array if numpy_knows(array) else np.ascontiguousarray(array).view(f"V{array.dtype.itemsize}")
    with writing(destination) as dst, atomic_file(Path(dst), overwrite=overwrite) if isinstance(dst, str) else nullcontext(dst) as file:
        npy.write_array(file, stored, allow_pickle=False)
