"""Sources and destinations as the API takes them: paths, or open binary files for what has no bytes of its own to map or to replace."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TextIO

from modelcodec.cli.options import STANDARD

Endpoint = str | BinaryIO


@contextmanager
def reading(source: str) -> Iterator[Endpoint]:
    """A source as the API takes it: a path, or an open binary file for standard input, pipes and devices."""
    if source == STANDARD:
        yield _binary(sys.stdin)
    elif is_special(source):
        with open(source, "rb") as file:
            yield file
    else:
        yield source


@contextmanager
def writing(destination: str) -> Iterator[Endpoint]:
    """The same for a destination. A pipe or device is written to, never replaced by renaming a file over it: /dev/null stays a device."""
    if destination == STANDARD:
        stream = _binary(sys.stdout)
        yield stream
        stream.flush()
    elif is_special(destination):
        with open(destination, "wb") as file:
            yield file
    else:
        yield destination


def _binary(stream: TextIO | None) -> BinaryIO:
    if stream is None:
        raise OSError(errno.EBADF, "the standard stream was closed before the start; redirect it, or name a file")
    return stream.buffer


def is_special(path: str) -> bool:
    """Whether the path is a pipe or a device, which can be neither mapped nor replaced."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
