"""Registry of stages: wire id -> "module:Class". Ids are immortal. Strings, so that looking one up imports only that one."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import cast

from modelcodec.errors import UnsupportedFile
from modelcodec.stage import Stage

STAGES: dict[int, str] = {
    0: "raw:Raw",
    1: "constant:Constant",
    2: "zstd:Zstd",
    3: "rans:Rans",
    4: "split_float:SplitFloat",
    5: "planes:Planes",
    6: "palette:Palette",
    7: "sparse:Sparse",
    8: "widen:Widen",
    9: "fields:Fields",
    10: "class_rans:ClassRans",
    11: "grid:Grid",
    12: "delta:Delta",
    13: "codebook:Codebook",
    14: "lowrank:Lowrank",
    15: "seedbasis:SeedBasis",
}

FUSED: dict[tuple[int, int], str] = {(4, 3): "fused", (4, 10): "fused_classes"}
"""(stage, stage of its first part) -> module with `encode` and `decode` that do both in one pass, with the same bytes."""


@cache
def fused(stage_id: int, first_id: int) -> ModuleType | None:
    """The module for these two stages; None where they have none."""
    module = FUSED.get((stage_id, first_id))
    return None if module is None else import_module(f"modelcodec.stages.{module}")


@cache
def stage_of(stage_id: int) -> type[Stage]:
    """The stage with this wire id. Raises UnsupportedFile for an id that this version does not know."""
    place = STAGES.get(stage_id)
    if place is None:
        raise UnsupportedFile(f"stage {stage_id} is not known to this version of modelcodec; update modelcodec")
    module, name = place.split(":")
    return cast(type[Stage], getattr(import_module(f"modelcodec.stages.{module}"), name))
