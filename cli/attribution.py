"""How far the attributions of two checkpoints' networks are apart, as `compare --attribution` asks for it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelcodec.cli.user_code import blamed_on, functions_of
from modelcodec.errors import BadRecipe

if TYPE_CHECKING:
    from modelcodec.fit.attribution import Shifts

MOST_IMAGES = 1000


def attribution_shifts(script: Path, first: str, second: str) -> Shifts:
    """Run the script's model with the tensors of both checkpoints. Raises BadRecipe, OSError, and what opening and decoding raise."""
    try:
        from modelcodec.fit.attribution import shifts
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BadRecipe("attributions need torch, which is not installed; install it with: pip install 'modelcodec[torch]'") from None

    model, batches = functions_of(script, "model", "batches")
    with blamed_on(script):
        a, b = (_filled(model(), path, script) for path in (first, second))
        return shifts(a, b, (_inputs(batch) for batch in batches(0)), MOST_IMAGES)


def _inputs(batch: Any) -> Any:
    return batch[0] if isinstance(batch, list | tuple) else batch


def _filled(model: Any, path: str, script: Path) -> Any:
    """The module with a checkpoint's tensors; of tied ones it needs only one, and no counts of batches."""
    import torch

    from modelcodec.comparison import opened_tensors, values_of

    state = model.state_dict()
    with opened_tensors(Path(path)) as tensors:
        prefix, filled = _prefix(tensors.keys(), list(state)), set()
        for name, target in state.items():
            tensor = tensors.get(prefix + name)
            if tensor is None:
                continue
            if tensor.spec.shape != tuple(target.shape):
                shape = tuple(target.shape)
                raise BadRecipe(f"{path}: {prefix + name} is {tensor.spec.shape}, in the model of {script} {shape}; give the checkpoint's own model")
            target.copy_(torch.from_numpy(values_of(tensor.read(), tensor.spec.dtype)).reshape(target.shape))
            filled.add(target.data_ptr())
    missing = [name for name, target in state.items() if target.is_floating_point() and target.data_ptr() not in filled]
    if missing:
        raise BadRecipe(f"{path}: the tensor {missing[0]} is missing, which the model of {script} has; give the checkpoint's own model")
    return model


def _prefix(names: Collection[str], wanted: list[str]) -> str:
    """What a checkpoint's names begin with where they are those of the model otherwise, as in `state_dict.module.`"""
    found = {name.removesuffix(wanted[0]) for name in names if name.endswith(wanted[0])} if wanted else set()
    return min(found, key=lambda prefix: (sum(prefix + name not in names for name in wanted), len(prefix)), default="")
