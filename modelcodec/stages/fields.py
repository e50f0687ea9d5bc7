"""fields (9): records of equal size, cut into their fields."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelcodec.errors import BadRecipe, CorruptFile
from modelcodec.stage import Encoded, FrameContext, Layout, PartShape, Stage
from modelcodec.types import Array
from modelcodec.wire import Reader, varint

MOST_FIELDS = 16
_FIELD = re.compile(r"([1248])x([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class Fields(Stage):
    """Field j of every record to part j: scales away from quants, in block-quantized tensors. exact.

    `fields` gives (width in bytes, number of words) for each field of a record.
    """

    fields: tuple[tuple[int, int], ...] = ((1, 1),)

    id: ClassVar[int] = 9
    name: ClassVar[str] = "fields"
    since: ClassVar[tuple[int, int]] = (0, 1)
    parts: ClassVar[tuple[str, ...]] = tuple(f"field {k}" for k in range(MOST_FIELDS))

    @classmethod
    def option(cls, name: str, text: str) -> tuple[tuple[int, int], ...]:
        """`2x2+1x12` is two words of 2 bytes, then twelve of 1."""
        found = [_FIELD.fullmatch(field) for field in text.split("+")]
        parsed = tuple((int(field[1]), int(field[2])) for field in found if field)
        if len(parsed) != len(found) or len(parsed) > MOST_FIELDS:
            raise BadRecipe(f"fields: {text[:200]!r} is not like 2x2+1x12 (width in bytes x number of words, at most {MOST_FIELDS} fields)")
        return parsed

    def options(self) -> dict[str, str]:
        return {"fields": "+".join(f"{width}x{n}" for width, n in self.fields)}

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        record = sum(width * n for width, n in self.fields)
        if x.itemsize != 1 or x.size % record:
            return None
        header = varint(len(self.fields)) + b"".join(bytes([width]) + varint(n) for width, n in self.fields)
        records, parts, at = x.reshape(-1, record), [], 0
        for width, n in self.fields:
            parts.append(np.ascontiguousarray(records[:, at : at + width * n]).reshape(-1).view(f"<u{width}"))
            at += width * n
        return Encoded(header, tuple(parts))

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        fields = _fields(header)
        record = sum(w * k for w, k in fields)
        if width != 1 or n % record:
            raise CorruptFile(f"fields: {n} words of {width} bytes are no whole number of records of {record}")
        return Layout(tuple(PartShape(w, n // record * k) for w, k in fields), 0)

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        fields = _fields(header)
        records, at = out.reshape(-1, sum(w * k for w, k in fields)), 0
        for (width, n), part in zip(fields, parts, strict=True):
            records[:, at : at + width * n] = part.view(np.uint8).reshape(records.shape[0], width * n)
            at += width * n


def _fields(header: bytes) -> tuple[tuple[int, int], ...]:
    """The fields of an untrusted header."""
    reader = Reader(header, "fields")
    k = reader.varint(MOST_FIELDS)
    fields = tuple((reader.u8(), reader.varint(1 << 20)) for _ in range(k))
    reader.end()
    if not fields or any(width not in (1, 2, 4, 8) or n == 0 for width, n in fields):
        raise CorruptFile("fields: no fields, an empty one, or one of a width that is not 1, 2, 4 or 8")
    return fields
