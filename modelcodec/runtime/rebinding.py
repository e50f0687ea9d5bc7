"""Every module's name for an object, changed at once: `from library import f` copies a name, and a hook has to reach the copies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

Pair = tuple[Any, Any]


def rebind(replacements: Sequence[Pair]) -> Callable[[], None]:
    """Let each name at the top of a loaded module that means the first object of a pair mean the second. Gives the function that turns it round again.

    What holds an object otherwise, as a default argument or in a list, keeps it.
    """
    by_identity = {id(old): new for old, new in replacements}
    for module in list(sys.modules.values()):
        # Entries need not be modules, and may run code when asked for attributes.
        if not isinstance(module, ModuleType):
            continue
        names = vars(module)
        for name, value in list(names.items()):
            if id(value) in by_identity:
                names[name] = by_identity[id(value)]

    def put_back() -> None:
        rebind([(new, old) for old, new in replacements])

    return put_back
