"""The few kinds of error, each a different action for the caller and its own exit code.

`OSError` (disk full, no such file, no permission) is never wrapped; the command line gives it exit code 74.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OS_ERROR = 74


class ModelCodecError(Exception):
    """Base of all errors of this package. A message says place, fact and remedy."""

    exit_code: ClassVar[int] = 1


class BadRecipe(ModelCodecError):
    """The settings cannot be carried out: the caller changes them."""

    exit_code: ClassVar[int] = 2


class CorruptFile(ModelCodecError):
    """The file is damaged: the caller fetches it again."""

    exit_code: ClassVar[int] = 3


class TruncatedFile(CorruptFile):
    """The file ends too early: the caller resumes the download."""

    exit_code: ClassVar[int] = 4


class UnsupportedFile(ModelCodecError):
    """Not a file of this format, or one written by a newer version: the caller updates modelcodec or names another file."""

    exit_code: ClassVar[int] = 5


class LimitExceeded(ModelCodecError):
    """The file asks for more than `Limits` allows: the caller does not trust it, or raises the limit."""

    exit_code: ClassVar[int] = 6


class UnsafeInput(ModelCodecError):
    """The input tries to reach outside: a path that leaves its folder, a pickle that calls code."""

    exit_code: ClassVar[int] = 7
