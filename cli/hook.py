"""`mcodec hook`: every Python of this environment opens compressed checkpoints, by two small files in its site-packages; or no longer."""

from __future__ import annotations

import sysconfig
from contextlib import suppress
from importlib.util import cache_from_source
from pathlib import Path

import click

from modelcodec.cli.messages import complain
from modelcodec.errors import EXIT_OS_ERROR

MODULE = "modelcodec_on_import"
START = f"import {MODULE}; {MODULE}.watch()\n"


@click.command(short_help="Let every Python of this environment open compressed checkpoints.")
@click.argument("action", type=click.Choice(["enable", "disable", "status"]))
def hook(action: str) -> int:
    """Turn the hook on or off for every Python program of this environment, or tell whether it is on.

    Enabled, the first import of safetensors calls modelcodec.install(); until then it costs nothing to speak of. It is two files in site-packages, which
    'disable' removes.
    """
    folder = Path(sysconfig.get_path("purelib"))
    start, module = folder / f"{MODULE}.pth", folder / f"{MODULE}.py"
    try:
        if action == "enable":
            _enable(start, module)
        if action == "disable":
            for file in (start, module, Path(cache_from_source(str(module)))):
                with suppress(FileNotFoundError):
                    file.unlink()
    except OSError as error:
        complain(str(folder), error)
        return EXIT_OS_ERROR
    click.echo(_status(start, module))
    return 0


def _enable(start: Path, module: Path) -> None:
    """The module first: a start of Python between the two must find it."""
    from modelcodec.formats.atomic import atomic_file

    for path, content in ((module, _source()), (start, START.encode())):
        with atomic_file(path, overwrite=True) as file:
            file.write(content)


def _status(start: Path, module: Path) -> str:
    if not start.exists():
        return f"disabled: there is no {start}"
    if not module.exists():
        return f"broken: {start} is there, {module} is not; enable or disable it again"
    stale = "" if module.read_bytes() == _source() else ", by another version of modelcodec; enable it again"
    return f"enabled: {start}{stale}"


def _source() -> bytes:
    """The module that watches for safetensors, as it stands in this package."""
    from modelcodec.runtime import on_import

    return Path(on_import.__file__).read_bytes()
