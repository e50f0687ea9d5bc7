"""`install`: every library that reads safetensors files, imported already or later, also reads containers."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock

from modelcodec.runtime.rebinding import rebind
from modelcodec.runtime.safe_open import reading_deserialize, reading_safe_open
from modelcodec.runtime.saving import begin_saving

_LOCK = RLock()
_installed: dict[str, Callable[[], None]] = {}
"""What undoes each part that is installed."""


def install(saves: bool = False) -> None:
    """Let `safe_open`, `load_file`, `load_model` and `load` of safetensors read compressed checkpoints too, wherever their names have got to in this process.

    `saves`: `save_file` and all that writes through it writes compressed, as inside `compressed_saves()`, until `uninstall`.
    Ordinary files go to safetensors as before. Calling it again changes nothing, but that `saves` may be added.
    """
    with _LOCK:
        if "reading" not in _installed:
            import safetensors

            real_open, real_deserialize = safetensors.safe_open, safetensors.deserialize
            _installed["reading"] = rebind([(real_open, reading_safe_open(real_open)), (real_deserialize, reading_deserialize(real_deserialize))])
        if saves and "saving" not in _installed:
            _installed["saving"] = begin_saving(None)


def uninstall() -> None:
    """Put back what `install` replaced. What is open stays open."""
    with _LOCK:
        while _installed:
            _, undo = _installed.popitem()
            undo()
