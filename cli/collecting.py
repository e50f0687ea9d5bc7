"""How often the process of the command line searches for garbage."""

from __future__ import annotations

import atexit
import gc

_USUAL = gc.get_threshold()


def rarely() -> None:
    """Spare the process most searches: imports make objects without end and no garbage, and searching them takes a quarter of a short run."""
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)


def as_usual() -> None:
    """For code of the user's, which may leave large tensors to the collector."""
    gc.set_threshold(*_USUAL)
    atexit.unregister(gc.freeze)
