"""Registry of fits: name -> "module:Class". Strings, so that looking one up imports only that one.

In Python by their classes, `fit.Magnitude(0.5) | fit.KMeans(16)`; in recipes by these names, `prune(0.5) | kmeans(16)` (`fit.text.parse_fit`).
"""

from __future__ import annotations

from typing import Any

from modelcodec.fit.registry import class_named, names_of_classes

FITS: dict[str, str] = {
    "trellis": "trellis:Trellis",
    "bits": "allocate:Bits",
    "size": "allocate:Size",
    "snr": "allocate:Snr",
    "max_error": "allocate:MaxError",
    "prune": "magnitude:Magnitude",
    "n_of_m": "nm:NM",
    "blocks": "blocks:Blocks",
    "filters": "filters:Filters",
    "chita": "chita:Chita",
    "nettrim": "nettrim:NetTrim",
    "kmeans": "kmeans:KMeans",
    "kernel_vq": "kernel_vq:KernelVQ",
    "jlcm": "jlcm:GroupedKMeans",
    "lowrank": "lowrank:LowRank",
    "obs": "obs:Obs",
    "gpfq": "gpfq:Gpfq",
    "nupes": "nupes:Nupes",
    "fp8": "fp8:Fp8",
    "equalize": "equalize:Equalize",
    "batchnorm": "batchnorm:BatchNorms",
}


def fit_named(name: str) -> Any:
    """The class of a registered fit. Raises BadRecipe."""
    return class_named(name, FITS, "modelcodec.fit", "fit")


_CLASSES = names_of_classes(FITS)


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module 'modelcodec.fit' has no attribute {name!r}")
    return fit_named(_CLASSES[name])


def __dir__() -> list[str]:
    return sorted([*globals(), *_CLASSES])
