"""How many bytes the lossy tensors may have, so that a file as a whole has the size asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from modelcodec import api
from modelcodec.errors import BadRecipe
from modelcodec.fit.chain import Fitting
from modelcodec.fit.rules import Ruled
from modelcodec.fit.trellis import Quantizer, Trellis
from modelcodec.fitted import Fitted, Weights
from modelcodec.formats import container
from modelcodec.formats.atomic import spool
from modelcodec.mapping import mapped
from modelcodec.recipe import Recipe

_ROUGH = Quantizer(states=1, price=0.0, passes=0, trained=False)
_SLACK_BYTES = 24
"""An entry's padding, and its frame's lengths, may differ by so much."""


@dataclass(frozen=True, slots=True)
class Rough:
    """A quick fit whose size does not matter."""

    def __call__(self, tensors: Mapping[str, Weights], data: object = None) -> Fitted:
        values = [weights.values().astype(np.float64) for weights in tensors.values()]
        squares = sum(float(np.square(part[np.isfinite(part)]).sum()) for part in values)
        n = sum(part.size for part in values)
        return Trellis(math.sqrt(squares / n) / 4 if squares else 1.0, _ROUGH)(tensors)


def bytes_left(source: Path | bytes, most_bytes: int, recipe: Recipe, level: int | None) -> int:
    """What is left of `most_bytes` for the lossy tensors, beside all else in the compressed file of `source`. Raises BadRecipe where nothing is."""
    with spool() as file:
        usual: Fitting = Rough()
        api.compress(BytesIO(source) if isinstance(source, bytes) else source, file, level=level, recipe=recipe, fit=Ruled(recipe.rules, usual), verify=False)
        with mapped(file) as view:
            archive = container.read(view, "rough")
            lossy = archive.losses()
            left = most_bytes - len(view) + sum(entry.size - _SLACK_BYTES for entry in archive.tensors if entry.name in lossy)
    if left <= 0:
        raise BadRecipe(f"what stays exact takes {most_bytes - left} bytes, {most_bytes} are asked for in all; ask for more, or let more tensors be lossy")
    return left
