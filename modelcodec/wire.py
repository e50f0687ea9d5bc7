"""The one place that slices untrusted bytes: a bounded cursor for reading, a builder for writing (docs/format.md, section 1)."""

from __future__ import annotations

from modelcodec.errors import CorruptFile, TruncatedFile

VARINT_BYTES = 9


class Reader:
    """A cursor over untrusted bytes. Every length is proved before it is used; nothing is read past the end.

    `where` names the place for error messages. `short` is raised when the bytes end early: TruncatedFile where that can only mean a cut-off file, CorruptFile
    inside a region whose length is already known.
    """

    __slots__ = ("_data", "_position", "_short", "_where")

    def __init__(self, data: memoryview | bytes, where: str, *, short: type[CorruptFile] = CorruptFile) -> None:
        self._data = memoryview(data)
        self._position = 0
        self._where = where
        self._short = short

    @property
    def position(self) -> int:
        return self._position

    @property
    def remaining(self) -> int:
        return len(self._data) - self._position

    @property
    def where(self) -> str:
        return self._where

    def corrupt(self, fact: str) -> CorruptFile:
        return CorruptFile(f"{self._where}, byte {self._position}: {fact}; the file is damaged, fetch it again")

    def take(self, n: int) -> memoryview:
        """The next n bytes, not copied."""
        if n < 0 or n > self.remaining:
            if self._short is TruncatedFile:
                raise TruncatedFile(f"{self._where}, byte {self._position}: ends {n - self.remaining} bytes too early; fetch the rest of the file")
            raise self.corrupt(f"{n} bytes wanted, {self.remaining} left")
        piece = self._data[self._position : self._position + n]
        self._position += n
        return piece

    def uint(self, n_bytes: int) -> int:
        at = self._position
        end = at + n_bytes
        if end > len(self._data):
            self.take(n_bytes)
        self._position = end
        return int.from_bytes(self._data[at:end], "little")

    def u8(self) -> int:
        if self._position >= len(self._data):
            self.take(1)
        byte = self._data[self._position]
        self._position += 1
        return byte

    def varint(self, most: int = (1 << 63) - 1) -> int:
        """A varint of at most `most`, in its shortest form."""
        data, at = self._data, self._position
        try:  # nearly all of them have up to three bytes
            value = data[at]
            if value >= 0x80:
                at += 1
                value = value & 0x7F | data[at] << 7
                if value >= 0x4000:
                    at += 1
                    value = value & 0x3FFF | data[at] << 14
            if value <= most and value < 0x200000 and (data[at] or at == self._position):
                self._position = at + 1
                return value
        except IndexError:
            pass
        byte = self.u8()
        value = byte & 0x7F
        shift = 7
        while byte >= 0x80:
            if shift == 7 * VARINT_BYTES:
                raise self.corrupt("a number has more than 63 bits")
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte == 0:
                raise self.corrupt("a number is not in its shortest form")
        if value > most:
            raise self.corrupt(f"a number is {value}, at most {most} is possible")
        return value

    def byte_string(self, most: int) -> memoryview:
        return self.take(self.varint(most))

    def zeros(self) -> None:
        """All that is left is padding and must be zero."""
        if any(self.take(self.remaining)):
            raise self.corrupt("padding is not zero")

    def end(self) -> None:
        if self.remaining:
            raise self.corrupt(f"{self.remaining} bytes too many")


_SHORT = tuple(bytes([value]) for value in range(128))


def varint(value: int) -> bytes:
    if 0 <= value < 128:  # nearly all of them
        return _SHORT[value]
    if not 0 <= value < 1 << 63:
        raise ValueError(f"{value} does not fit a varint of 63 bits")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def byte_string(data: bytes) -> bytes:
    return varint(len(data)) + data
