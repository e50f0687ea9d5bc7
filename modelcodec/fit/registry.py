"""Looking up a class by its name in a registry of strings, "module:Class", so that only its own module is imported."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from modelcodec.errors import BadRecipe


def class_named(name: str, places: Mapping[str, str], package: str, kind: str) -> Any:
    """The class that a name stands for among `places` in the modules of a package; `kind` of thing for the message. Raises BadRecipe."""
    if name not in places:
        raise BadRecipe(f"there is no {kind} {name!r}; the {kind.split()[-1]}s are {', '.join(places)}")
    module, _, attribute = places[name].partition(":")
    return getattr(import_module(f"{package}.{module}"), attribute)


def names_of_classes(places: Mapping[str, str]) -> dict[str, str]:
    """The name in the registry by that of the class."""
    return {place.partition(":")[2]: name for name, place in places.items()}
