"""Executed at the start of each interpreter under `mcodec run`, because its folder stands first in PYTHONPATH: puts on the hook, and makes way."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def _make_way() -> None:
    """Take this folder out of the path again, and import the environment's own sitecustomize, if it has one."""
    folder = Path(__file__).parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry) != folder]
    own = sys.modules.pop(__name__)
    try:
        import_module(__name__)
    except ModuleNotFoundError as error:
        if error.name != __name__:
            raise
    finally:
        sys.modules.setdefault(__name__, own)


if __name__ == "sitecustomize":
    try:
        from modelcodec.runtime.on_import import watch
    except ImportError:  # a child process of another environment
        pass
    else:
        watch()
    _make_way()
