"""Registry of methods that train: name -> "module:Class". Strings, so that looking one up imports only that one.

In Python by their classes, `training.DKM(16)`; on the command line by these names, `mcodec fit "dkm(16) | coded_size(1e-7)" script.py`.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

from modelcodec.fit.registry import class_named, names_of_classes

if TYPE_CHECKING:
    from modelcodec.fit.training.method import Method

METHODS: dict[str, str] = {
    "dkm": "dkm:DKM",
    "l2": "l2:L2",
    "coded_size": "coded_size:CodedSize",
    "lsq": "learned_step:LearnedStep",
    "binary": "binary:Binary",
    "ternary": "ternary:Ternary",
    "self_compressing": "self_compressing:SelfCompressing",
    "binary_kernels": "binary_kernels:BinaryKernels",
    "distill": "distillation:Distill",
    "attribution": "attribution:Attribution",
    "gradual": "gradual:Gradual",
    "hypersparse": "hypersparse:HyperSparse",
    "unification": "unification:Unification",
    "mpd": "mpd:BlockDiagonal",
    "orthogonal": "orthogonal:Orthogonal",
    "filter_norm": "filter_norm:FilterNorm",
    "chip": "chip:Chip",
    "hrel": "hrel:HRel",
    "knapsack": "knapsack:Knapsack",
    "group_lasso": "group_lasso:GroupLasso",
    "pranc": "pranc:PRANC",
    "projection": "projection:Projection",
    "supermask": "supermask:Supermask",
    "plain": "plain:Plain",
}


def method_named(name: str) -> Any:
    """The class of a registered method. Raises BadRecipe."""
    return class_named(name, METHODS, "modelcodec.fit.training", "training method")


def parse_method(text: str) -> Method:
    """A method, or several joined by `|`, as in `n_of_m(2, 4) | coded_size(1e-7)`. Parsed, never evaluated. Raises BadRecipe."""
    from modelcodec.fit.text import call
    from modelcodec.fit.training.method import Joined

    method: Method = reduce(Joined, [call(step, method_named) for step in text.split("|")])
    return method


_CLASSES = names_of_classes(METHODS)


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module 'modelcodec.fit.training' has no attribute {name!r}")
    return method_named(_CLASSES[name])


def __dir__() -> list[str]:
    return sorted([*globals(), *_CLASSES])
