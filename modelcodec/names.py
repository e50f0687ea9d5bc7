"""What compressed files are called."""

from __future__ import annotations

from pathlib import Path

from modelcodec.errors import BadRecipe

SUFFIX = ".mcodec"
SAFETENSORS = ".safetensors"


def compressed_name(path: Path) -> Path:
    """Where `compress` puts its result: `model.safetensors` -> `model.mcodec.safetensors`, anything else -> `NAME.mcodec`."""
    if path.suffix == SAFETENSORS and not path.is_dir():
        return path.with_name(path.name[: -len(SAFETENSORS)] + SUFFIX + SAFETENSORS)
    return path.with_name(path.name + SUFFIX)


def restored_name(path: Path) -> Path:
    """The reverse. Raises BadRecipe for a name that does not tell."""
    for ending, kept in ((SUFFIX + SAFETENSORS, SAFETENSORS), (SUFFIX, "")):
        if path.name.endswith(ending) and path.name != ending:
            return path.with_name(path.name[: -len(ending)] + kept)
    raise BadRecipe(f"{path}: the name does not tell how the restored file shall be called; name the destination")
