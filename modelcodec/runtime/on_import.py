"""Installs the hook when somebody imports safetensors; until then it costs one entry in `sys.meta_path`.

`mcodec hook enable` copies this file into site-packages, where every start of Python imports it: it imports nothing but sys, and never fails.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

NAME = "safetensors"


def watch() -> None:
    """Install the hook with the first import of safetensors, or now where it has been."""
    if NAME in sys.modules:
        _install()
    elif not any(hasattr(finder, "modelcodec_watch") for finder in sys.meta_path):
        sys.meta_path.insert(0, Watch())


def _install() -> None:
    try:
        from modelcodec.runtime.hooks import install

        install()
    except Exception as error:  # nothing of ours may keep the host from working
        sys.stderr.write(f"modelcodec: compressed checkpoints cannot be opened, the hook is not installed: {type(error).__name__}: {error}\n")


class Watch:
    """Finds safetensors where the others find it, so that the hook can be installed once it was executed: finding alone may only ask whether it exists."""

    modelcodec_watch = True
    """Tells one from another copy of this module."""

    def find_spec(self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None) -> "ModuleSpec | None":
        if name != NAME:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self and hasattr(finder, "find_spec") else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = Loader(spec.loader, self)  # type: ignore[assignment]
                return spec
        return None


class Loader:
    """The real loader, and the hook after it."""

    def __init__(self, real: object, watch: Watch) -> None:
        self.real, self.watch = real, watch

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def exec_module(self, module: "ModuleType") -> None:
        if self.watch in sys.meta_path:
            sys.meta_path.remove(self.watch)
        module.__loader__ = module.__spec__.loader = self.real  # type: ignore
        self.real.exec_module(module)  # type: ignore[attr-defined]
        _install()
