"""What a stage and a plan are. A stage is what the decoder must know; its instance holds the encoder's options.

Stages live in `modelcodec/stages/`, one file each, and are registered in `modelcodec/stages/__init__.py`. docs/stages.md is their contract, docs/adding.md
tells how to add one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from modelcodec.errors import BadRecipe
from modelcodec.types import Array, TensorSpec

Parsed = TypeVar("Parsed")


@dataclass(slots=True)
class Shared:
    """What the frames of a group have in common: bytes, untrusted when read, and what a stage made of them, kept for the next frame."""

    data: bytes
    parsed: Any = None

    def parsed_as(self, kind: type[Parsed], read: Callable[[bytes], Parsed]) -> Parsed:
        """What `read` makes of the bytes, made once. Raises what it raises."""
        parsed = self.parsed  # once: of a damaged group, another thread may put another stage's there
        if not isinstance(parsed, kind):
            parsed = self.parsed = read(self.data)
        return parsed


@dataclass(frozen=True, slots=True)
class FrameContext:
    """What a frame may know beside its own bytes: its tensor, the word of its group of frames that it starts with, its `n` words, the group's shared part.

    `at` is the word of the tensor that the frame starts with. `base` has the n words that stand in the frame's place in a base, where the tensor has one.
    """

    spec: TensorSpec
    first: int
    n: int
    shared: Shared | None = None
    at: int = 0
    base: Array | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A stage's result for one array: its header, its own payload, and the parts that other plans go on with."""

    header: bytes
    parts: tuple[Array, ...] = ()
    payload: bytes | Array = b""


@dataclass(frozen=True, slots=True)
class PartShape:
    """Width in bytes (1, 2, 4, 8) and number of words of a part, as the stage's header implies them."""

    width: int
    n: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What a node's header implies: the shapes of its parts and the length of its own payload in bytes."""

    parts: tuple[PartShape, ...]
    n_payload: int


class Stage(ABC):
    """One decoding step. Subclasses are frozen dataclasses whose fields are the encoder's options."""

    id: ClassVar[int]
    """On the wire; never changed, never reused."""
    name: ClassVar[str]
    since: ClassVar[tuple[int, int]]
    """First format version with this stage."""
    exact: ClassVar[bool] = True
    """decode(encode(x)) == x, bit for bit."""
    parts: ClassVar[tuple[str, ...]] = ()
    """Names of the parts, for plans; `planes` and `fields` have as many as their data."""
    fitted: ClassVar[bool] = False
    """Instances hold what a fit decided for one tensor: recipes cannot write them."""
    loose: ClassVar[bool] = False
    """Some bits of its payload or parts may change nothing that is decoded: frames with such a stage end with a check of their payload."""
    shares: ClassVar[bool] = False
    """Whether `prepare` may give something, so that frames are planned by groups."""

    @classmethod
    def option(cls, name: str, text: str) -> Any:
        """An encoder option from a recipe's text. Raises BadRecipe."""
        if not (text.isascii() and text.isdecimal()) or len(text) > 9:
            raise BadRecipe(f"{cls.name}: {name} = {text!r} is no whole number")
        return int(text)

    def options(self) -> dict[str, str]:
        """The options that are not at their default, as recipes write them."""
        return {f.name: str(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default}  # type: ignore[arg-type]

    @classmethod
    def part_names(cls, n_parts: int) -> tuple[str, ...]:
        """Names of the parts that are there; optional parts stand last in `parts`."""
        return cls.parts[:n_parts]

    def prepare(self, spec: TensorSpec, x: Array, at: int) -> Shared | None:
        """What the frames of a group share, as the root of a recipe's plan wants it; `x` are the group's words, from word `at` of the tensor on."""
        return None

    @abstractmethod
    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        """Turn words into header, parts and payload; None where this stage does not apply to them. `x` is never changed."""

    @classmethod
    @abstractmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        """Check an untrusted header and tell what it implies. Raises CorruptFile. Allocates nothing that the header has not earned."""

    @classmethod
    def bytes_of(cls, header: bytes, payload: Array, n_bytes: int) -> Array | None:
        """What `decode` would fill its words with (u1), where it lies somewhere anyway and need not be copied; else None. Raises what `decode` raises."""
        return None

    @classmethod
    @abstractmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        """Fill `out` (n words).

        `header` passed `layout`, `payload` (u1) and `parts` have the sizes that `layout` gave; their contents are untrusted. `context` is None for
        bytes that are no tensor's. Raises CorruptFile.
        """


@dataclass(frozen=True)
class Plan:
    """A tree of stages: each part has its own plan; a part that is not named stays raw."""

    stage: Stage
    then: Mapping[str, Plan] = field(default_factory=dict)

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.stage.options().items())
        inner = ", ".join(f"{part}:{plan}" for part, plan in self.then.items())
        return self.stage.name + (f"{{{options}}}" if options else "") + (f"({inner})" if inner else "")
