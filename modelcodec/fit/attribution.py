"""Attribution: which places of an input, or of a layer's maps, a classifier's answer rests on, and how far those of two networks are apart.

Sources: Grad-CAM (Selvaraju et al., arXiv 1610.02391); saliency (Simonyan, Vedaldi & Zisserman, arXiv 1312.6034). Maps are flat: (images, places).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelcodec.errors import BadRecipe

INPUT = "input"
"""The row of saliency maps."""
_TOP = 10
"""One place in so many counts as one of the top places."""


@dataclass(frozen=True, slots=True)
class Shift:
    """How far the maps of a layer, or of the input, moved; means over the images. 1 is the same for all three.

    `cosine` of the angle between maps; `rank_correlation`: Spearman's, of their places; `overlap`: share of the top tenth of the places that is in both.
    """

    name: str
    n_places: int
    cosine: float
    rank_correlation: float
    overlap: float


@dataclass(frozen=True, slots=True)
class Shifts:
    """`agreement`: share of the images that both networks name alike."""

    n_images: int
    agreement: float
    layers: tuple[Shift, ...]


def grad_cam(maps: Tensor, answers: Tensor, classes: Tensor, kept: Tensor | None = None) -> Tensor:
    """Channels of maps (n, channels, ...), those that are `kept`, summed, each weighed by what the answer to a class gains from it; what speaks against the
    class is zero. It can be differentiated."""
    gains = torch.autograd.grad(_chosen(answers, classes), maps, create_graph=True)[0].flatten(2).sum(2)
    gains = gains if kept is None else gains * kept
    return functional.relu((gains[:, :, None] * maps.flatten(2)).sum(1))


def energy(maps: Tensor, kept: Tensor | None = None) -> Tensor:
    """Mean square of the channels, all weighed alike."""
    maps = maps.flatten(2)
    return (maps if kept is None else maps * kept[:, None]).square().mean(1)


def classes_of(answers: Any) -> Tensor:
    """What a classifier (n, classes) decides for. Raises BadRecipe."""
    if not isinstance(answers, Tensor) or answers.dim() != 2:
        raise BadRecipe(f"attribution: the model answers with {_described(answers)}; it is to be a classifier that gives a tensor (images, classes)")
    return answers.argmax(1)


def _described(answers: Any) -> str:
    return f"a tensor {tuple(answers.shape)}" if isinstance(answers, Tensor) else type(answers).__name__


def _chosen(answers: Tensor, classes: Tensor) -> Tensor:
    return answers.gather(1, classes[:, None]).sum()


def gives_maps(output: Any) -> bool:
    """Whether a layer's output is maps (n, channels, height, width) of more than one place."""
    return isinstance(output, Tensor) and output.dim() > 3 and output[0, 0].numel() > 1


@contextmanager
def outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Any]]:
    """What modules give in the passes inside the block, by their names, in the order in which they were last run."""
    found: dict[str, Any] = {}

    def hook(name: str) -> Any:
        def keep(_module: nn.Module, _given: Any, output: Any) -> None:
            found.pop(name, None)
            found[name] = output

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def last_maps(model: nn.Module, inputs: Any) -> str:
    """Name of the module that gives the last maps on the way to the answer. Raises BadRecipe where none does."""
    with outputs_of({name: module for name, module in model.named_modules() if name}) as found, torch.no_grad():
        model(inputs)
    names = [name for name, output in found.items() if gives_maps(output)]
    if not names:
        raise BadRecipe("attribution: no layer of the model gives maps (n, channels, height, width); it is for networks that look at images")
    return names[-1]


def shifts(first: nn.Module, second: nn.Module, batches: Iterable[Tensor], most_images: int) -> Shifts:
    """How far the attributions of `second` are from those of `first`, on batches of inputs (n, channels, ...), for the classes that `first` decides for.

    Grad-CAM of the model's own children that give maps, and of the last maps; saliency of the input. memory: all maps of a batch, of both networks.
    """
    sums: dict[str, list[Tensor]] = {}
    places: dict[str, int] = {}
    agreed = n = 0
    layers: list[str] | None = None
    for batch in batches:
        x = batch[: most_images - n]
        if layers is None:
            last = last_maps(first.eval(), x)
            layers = list(dict.fromkeys([*(name for name, _ in first.named_children()), last]))
        ours, classes = _maps(first, x, layers, None)
        theirs, decided = _maps(second, x, layers, classes)
        for name in ours.keys() & theirs.keys():
            places[name] = ours[name].shape[1]
            if theirs[name].shape == ours[name].shape:
                sums.setdefault(name, []).append(torch.stack(_likeness(ours[name], theirs[name])))
        agreed, n = agreed + int((classes == decided).sum()), n + len(x)
        if n >= most_images:
            break
    if not n:
        raise BadRecipe("attribution: there is no image to look at; batches are to give some")
    order = [*(name for name in layers or () if name in sums), INPUT]
    means = {name: torch.cat(sums[name], 1).mean(1).tolist() for name in order}
    return Shifts(n, agreed / n, tuple(Shift(name, places[name], *means[name]) for name in order))


def _maps(model: nn.Module, x: Tensor, layers: Iterable[str], classes: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
    """Maps by layer, and what the model decides for. They are of `classes` where these are given."""
    model.eval()
    x = x.to(next(model.parameters()).device).detach().requires_grad_()
    with outputs_of({name: model.get_submodule(name) for name in layers}) as found, torch.enable_grad():
        answers = model(x)
        decided = classes_of(answers)
        wanted = decided if classes is None else classes
        maps = {name: grad_cam(output, answers, wanted).detach() for name, output in found.items() if gives_maps(output) and output.requires_grad}
        saliency = torch.autograd.grad(_chosen(answers, wanted), x)[0].abs()
    return maps | {INPUT: saliency.flatten(2).sum(1) if saliency.dim() > 2 else saliency}, decided


def _likeness(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine, rank correlation and overlap, for each image."""
    k = max(a.shape[1] // _TOP, 1)
    top_a, top_b = (torch.zeros_like(x).scatter_(1, x.topk(k).indices, 1.0) for x in (a, b))
    return _cosine(a, b), _cosine(*(ranks - ranks.mean(1, keepdim=True) for ranks in (_ranks(a), _ranks(b)))), (top_a * top_b).sum(1) / k


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of two maps of nothing 1, of one 0."""
    nothing = [(x == 0).all(1) for x in (a, b)]
    return torch.where(nothing[0] & nothing[1], 1.0, functional.cosine_similarity(a.double(), b.double(), eps=1e-300)).float()


def _ranks(x: Tensor) -> Tensor:
    """The mean rank where places are alike."""
    order = x.sort(1).values
    return (torch.searchsorted(order, x) + torch.searchsorted(order, x, right=True)).double() / 2
