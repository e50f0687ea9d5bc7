"""Which tensors are fitted, and how: by a recipe's rules, or by what is usual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fitting, is_fitted
from modelcodec.fit.text import parse_fit
from modelcodec.fitted import Fitted, FittedTensor, Weights
from modelcodec.recipe import Rule
from modelcodec.types import TensorSpec

KEPT = ("*norm*", "*bias*", "*running_*", "*router*", "*.gate.weight", "*rotary*", "*scale*", "*zero_point*")
"""Names of tensors that stay as they are unless a rule says otherwise: they are few, and an error in them is felt everywhere."""
LEAST_WEIGHTS = 256
"""Smaller tensors, too."""


def is_usual(spec: TensorSpec) -> bool:
    """Whether a tensor is fitted without a rule: a matrix or a kernel, of a size worth it, that is no norm, router or the like."""
    return is_fitted(spec) and spec.n_words >= LEAST_WEIGHTS and not any(fnmatchcase(spec.name.lower(), pattern) for pattern in KEPT)


@dataclass(frozen=True, slots=True)
class Ruled:
    """The first rule that matches a tensor decides: its `fit`, or without one that it stays exact. Tensors of no rule take `usual`, if that is given.

    Tensors of one rule are fitted together, as one budget.
    """

    rules: Sequence[Rule] = ()
    usual: Fitting | None = None

    def __call__(self, tensors: Mapping[str, Weights], data: Calibration | None = None) -> Fitted:
        groups: dict[int, dict[str, Weights]] = {}
        for name, weights in tensors.items():
            number = next((k for k, rule in enumerate(self.rules) if rule.matches(weights.spec)), len(self.rules))
            if number < len(self.rules) or is_usual(weights.spec):
                groups.setdefault(number, {})[name] = weights
        if data is not None:  # running means and biases take up mean errors
            for group in groups.values():
                takers = (data.biases[name].tensor for name in tuple(group) if name in data.biases)
                group |= {name: tensors[name] for name in takers if name in tensors}
        fitted: dict[str, FittedTensor] = {}
        for number, group in sorted(groups.items()):
            text = self.rules[number].fit if number < len(self.rules) else None
            fit = self.usual if number == len(self.rules) else parse_fit(text) if text else None
            if fit is not None:
                fitted |= fit(group, data).tensors
        return Fitted({name: fitted[name] for name in tensors if name in fitted})
