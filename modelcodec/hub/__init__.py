"""Compressed checkpoints on the Hugging Face Hub; huggingface_hub is the transport. Public names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "push": ("uploading", "push"),
    "Pushed": ("uploading", "Pushed"),
    "pull": ("downloading", "pull"),
    "open": ("remote_container", "open_remote"),
    "estimate": ("traffic", "estimate"),
    "Traffic": ("traffic", "Traffic"),
    "quieten": ("repository", "quieten"),
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'modelcodec.hub' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(f"modelcodec.hub.{module}"), attribute)
