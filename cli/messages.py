"""What is said to a person: one line a file on standard error, units that can be read, untrusted names made harmless."""

from __future__ import annotations

import click

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def printable(text: str) -> str:
    """The text with everything that could steer a terminal escaped: tensor and file names are untrusted."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def size(n_bytes: int) -> str:
    """Bytes in decimal units with three digits: 999 B, 1.20 kB, 60.8 MB, 332 GB."""
    if n_bytes < 1000:
        return f"{n_bytes} B"
    value, unit = float(n_bytes), 0
    while value >= 999.5 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {UNITS[unit]}"


def percent(n_bytes_coded: int, n_bytes: int) -> str:
    return f"{100 * n_bytes_coded / n_bytes:.1f} %" if n_bytes else "-"


def say(text: str) -> None:
    """A message to standard error."""
    click.echo("\n".join(printable(line) for line in text.split("\n")), err=True)


def complain(source: str | None, error: BaseException | str) -> None:
    """One line `mcodec: FILE: message`, the file unless the message begins with it."""
    text = describe(error) if isinstance(error, BaseException) else error
    if source is not None and not text.startswith((f"{source}:", f"{source},")):
        text = f"{source}: {text}"
    say(f"mcodec: {text}")


def describe(error: BaseException) -> str:
    """An error's message with the remedy that the command line knows."""
    if not isinstance(error, OSError):
        return str(error) or type(error).__name__
    if error.strerror is None or error.filename is None:
        return error.strerror or str(error) or type(error).__name__
    fact = "exists already; overwrite it with -f, or name another with -o" if isinstance(error, FileExistsError) else error.strerror
    return f"{error.filename}: {fact}"


def is_terminal(stream: object) -> bool:
    """Whether sys.stdin, sys.stdout or sys.stderr (None where the process was started with it closed) is a terminal."""
    try:
        return stream is not None and bool(stream.isatty())  # type: ignore[attr-defined]
    except ValueError:  # closed since
        return False

