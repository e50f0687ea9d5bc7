"""A codec for neural-network checkpoints, lossless and lossy. Public names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from modelcodec.version import VERSION as __version__

# In a source checkout cli/, formats/ and kernels/ stand beside this folder; installed, they are inside it.
_root = Path(__file__).resolve().parent.parent
if (_root / "kernels" / "__init__.py").is_file() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))

_PUBLIC = {
    "compress": "api",
    "decompress": "api",
    "open": "api",
    "load": "api",
    "load_file": "api",
    "save": "api",
    "save_file": "api",
    "inspect": "api",
    "rebase": "api",
    "NamedBase": "base",
    "verify": "api",
    "compare": "comparison",
    "install": "runtime.hooks",
    "uninstall": "runtime.hooks",
    "compressed_saves": "runtime.saving",
    "torch_load": "runtime.torch_loading",
    "stream": "runtime.streaming",
    "load_model": "runtime.loading",
    "compress_module": "runtime.compressed_module",
    "save_compressed": "runtime.compressed_module",
    "UpdatesInBackward": "runtime.training",
    "Report": "api",
    "Recipe": "recipe",
    "Limits": "limits",
    "ModelCodecError": "errors",
    "BadRecipe": "errors",
    "CorruptFile": "errors",
    "TruncatedFile": "errors",
    "UnsupportedFile": "errors",
    "LimitExceeded": "errors",
    "UnsafeInput": "errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'modelcodec' has no attribute {name!r}")
    return getattr(import_module(f"modelcodec.{module}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
