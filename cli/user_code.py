"""The user's own Python files, which are run, and errors in them told as theirs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from errno import ENOENT
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import walk_tb
from typing import Any

from modelcodec.cli import collecting
from modelcodec.errors import BadRecipe, ModelCodecError


def names_of(path: Path) -> Mapping[str, Any]:
    """What a file defines. It can import what lies beside it, as a script that Python runs. Raises BadRecipe, OSError."""
    if not path.is_file():
        raise FileNotFoundError(ENOENT, "no such file", str(path))
    spec = spec_from_file_location(_module_name(path), path)
    if spec is None or spec.loader is None:
        raise BadRecipe(f"{path}: this is no Python file; name one that ends in .py")
    module = sys.modules[spec.name] = module_from_spec(spec)  # dataclasses look their module up there
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    collecting.as_usual()
    with blamed_on(path):
        spec.loader.exec_module(module)
    return vars(module)


def function_of(path: Path, name: str) -> Callable[..., Any]:
    """A function of a file. Raises BadRecipe, OSError."""
    return functions_of(path, name)[0]


def functions_of(path: Path, *wanted: str) -> list[Callable[..., Any]]:
    """Functions of a file, which is run once. Raises BadRecipe, OSError."""
    names = names_of(path)
    for name in wanted:
        if not callable(names.get(name)):
            raise BadRecipe(f"{path}: the function {name} is missing; define it")
    return [names[name] for name in wanted]


@contextmanager
def blamed_on(path: Path) -> Iterator[None]:
    """An error that comes out of the user's file becomes BadRecipe and names the line; one of our own passes."""
    try:
        yield
    except (ModelCodecError, OSError):
        raise
    except Exception as error:
        line = _line(error, path)
        if line is None:
            raise
        raise BadRecipe(f"{path}, line {line}: {type(error).__name__}: {error}") from error


def _module_name(path: Path) -> str:
    return f"{path.stem}_of_user"


def _line(error: Exception, path: Path) -> int | None:
    """Where the file and this package called each other last, in the file; None where the package was the one called."""
    if isinstance(error, SyntaxError) and error.filename is not None and Path(error.filename).resolve() == path.resolve():
        return error.lineno
    users = _module_name(path)
    called = [(name, line) for frame, line in walk_tb(error.__traceback__) if (name := frame.f_globals.get("__name__", "")).startswith((users, "modelcodec."))]
    return called[-1][1] if called and called[-1][0] == users else None
