"""Fits as text, as recipes and the command line write them: `prune(0.5) | kmeans(16)`, `bits(3, states=32)`. Parsed, never evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from functools import reduce
from typing import Any

from modelcodec.errors import BadRecipe
from modelcodec.fit import fit_named
from modelcodec.fit.chain import Chain, Fitting
from modelcodec.fit.trellis import DEFAULT, Quantizer

_STEP = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*")
_READERS: dict[str, Callable[[str], object]] = {"int": int, "float": float, "bool": lambda text: {"true": True, "false": False}[text], "str": str}


def parse_fit(text: str) -> Fitting:
    """A fit, or several joined by `|`, one after the other. Options in order or by name; those of a quantizer stand beside a fit's own. Raises BadRecipe."""
    fit: Fitting = reduce(Chain, [call(step, fit_named) for step in text.split("|")])
    return fit


def call(text: str, named: Callable[[str], Any]) -> Any:
    """What `name(option, name=option)` stands for, its class found by `named`. Raises BadRecipe."""
    found = _STEP.fullmatch(text)
    if found is None:
        raise BadRecipe(f"fit {text.strip()!r} is not of the form name(option, name=option)")
    kind = named(found[1])
    given = [option.strip() for option in (found[2] or "").split(",") if option.strip()]
    every = {field.name: field for field in fields(kind) if field.init}
    known = {name: field for name, field in every.items() if _reader(field) is not None}
    of_quantizer = {field.name: field for field in fields(Quantizer)} if "quantizer" in every else {}
    own: dict[str, object] = {}
    chosen: dict[str, object] = {}
    for place, option in enumerate(given):
        name, equals, value = (part.strip() for part in option.partition("="))
        if not equals:
            if place >= len(known):
                raise BadRecipe(f"fit {found[1]}: {option!r} is one option too many; its options are {', '.join(known)}")
            name, value = list(known)[place], option
        target, field = (own, known[name]) if name in known else (chosen, of_quantizer.get(name))
        if field is None or name in target:
            raise BadRecipe(f"fit {found[1]}: there is no option {name!r} left; the options are {', '.join([*known, *of_quantizer])}")
        target[name] = _value(found[1], field, value)
    if chosen:
        own["quantizer"] = Quantizer(**{**{field: getattr(DEFAULT, field) for field in of_quantizer}, **chosen})
    try:
        return kind(**own)
    except TypeError:
        missing = next(field.name for field in every.values() if field.name not in own and _is_required(field))
        remedy = "" if missing in known else "; text cannot give it, build this fit in Python"
        raise BadRecipe(f"fit {found[1]}: the option {missing!r} is missing{remedy}") from None


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _reader(field: Field[Any]) -> Callable[[str], object] | None:
    """How an option is read; None for one that text cannot give."""
    return _READERS.get(str(field.type).partition(" ")[0])


def _value(fit: str, field: Field[Any], text: str) -> object:
    reader = _reader(field)
    try:
        return reader(text) if reader else None
    except (KeyError, ValueError):
        raise BadRecipe(f"fit {fit}: {field.name} = {text!r} is not possible") from None
