"""The members of a zip archive and where their bytes lie (APPNOTE 6.3.10, sections 4.3 to 4.5).

Python's zipfile gives contents; a codec that keeps the archive as it is needs places, which only central directory and local headers together tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from modelcodec.errors import CorruptFile, LimitExceeded, TruncatedFile
from modelcodec.limits import LIMITS

LOCAL_MAGIC = b"PK\3\4"
_CENTRAL_MAGIC = b"PK\1\2"
_END_MAGIC = b"PK\5\6"
_END64_MAGIC = b"PK\6\6"
_LOCATOR64_MAGIC = b"PK\6\7"

_END = Struct("<4s4HLLH")
_END64 = Struct("<4sQHHLLQQQQ")
_LOCATOR64 = Struct("<4sLQL")
_CENTRAL = Struct("<4s6H3L5H2L")
_LOCAL = Struct("<4s5H3L2H")

_COMMENT_MOST = 0xFFFF
_ZIP64_EXTRA = 1
_SATURATED = 0xFFFFFFFF
_ENCRYPTED = 1
_UTF8_NAME = 1 << 11


@dataclass(frozen=True, slots=True)
class Member:
    """One member: `n_bytes` in the archive from byte `offset` on. `stored` means that these are its contents, neither compressed nor encrypted."""

    name: str
    offset: int
    n_bytes: int
    stored: bool


def members(source: memoryview) -> dict[str, Member]:
    """All members by name, in the central directory's order; their places were checked. Raises CorruptFile, TruncatedFile or LimitExceeded."""
    n_members, start, end = _directory(source)
    if n_members > LIMITS.entries or end - start > LIMITS.header_bytes:
        raise LimitExceeded(f"zip archive: directory of {n_members} members, {end - start} bytes; the file is damaged or hostile")
    found = {member.name: member for member in _central(source, start, end)}
    if len(found) != n_members:
        raise CorruptFile(f"zip directory, byte {start}: {n_members} members announced, {len(found)} listed; the file is damaged, fetch it again")
    return found


def _directory(source: memoryview) -> tuple[int, int, int]:
    """Number of members, first byte and end of the central directory, from the record at the archive's end."""
    tail_start = max(0, len(source) - _END.size - _COMMENT_MOST)
    tail = bytes(source[tail_start:])
    at = tail.rfind(_END_MAGIC)
    while at >= 0:
        record = tail[at : at + _END.size]
        if len(record) == _END.size and at + _END.size + int.from_bytes(record[-2:], "little") == len(tail):
            break
        at = tail.rfind(_END_MAGIC, 0, at)
    else:
        raise TruncatedFile("zip archive: the directory at its end is missing; fetch the rest of the file")
    end_record = tail_start + at
    _, _, _, _, n_members, n_bytes, start, _ = _END.unpack(record)
    locator = end_record - _LOCATOR64.size
    if locator >= 0 and source[locator : locator + 4] == _LOCATOR64_MAGIC:
        _, _, record64, _ = _LOCATOR64.unpack_from(source, locator)
        if record64 > locator - _END64.size or source[record64 : record64 + 4] != _END64_MAGIC:
            raise CorruptFile(f"zip archive, byte {locator}: the zip64 record is not at byte {record64}; the file is damaged, fetch it again")
        *_, n_members, n_bytes, start = _END64.unpack_from(source, record64)
        end_record = record64
    if start + n_bytes > end_record:
        raise CorruptFile(f"zip archive: directory of {n_bytes} bytes at byte {start} runs into its end record; the file is damaged, fetch it again")
    return n_members, start, start + n_bytes


def _central(source: memoryview, start: int, end: int) -> Iterator[Member]:
    at = start
    while at < end:
        if end - at < _CENTRAL.size:
            raise CorruptFile(f"zip directory, byte {at}: cut off; the file is damaged, fetch it again")
        magic, _, _, flags, method, _, _, _, packed, unpacked, n_name, n_extra, n_comment, _, _, _, header = _CENTRAL.unpack_from(source, at)
        name_end = at + _CENTRAL.size + n_name
        extra_end = name_end + n_extra
        if magic != _CENTRAL_MAGIC or extra_end + n_comment > end:
            raise CorruptFile(f"zip directory, byte {at}: no entry; the file is damaged, fetch it again")
        raw_name = bytes(source[name_end - n_name : name_end])
        sizes = _wide(bytes(source[name_end:extra_end]), [unpacked, packed, header])
        yield _member(source, start, raw_name, flags, method, sizes)
        at = extra_end + n_comment


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """The values, those that are saturated replaced by the zip64 field's, which lists them in this order."""
    at = 0
    while at + 4 <= len(extra):
        kind, n_bytes = int.from_bytes(extra[at : at + 2], "little"), int.from_bytes(extra[at + 2 : at + 4], "little")
        if kind == _ZIP64_EXTRA:
            field = extra[at + 4 : at + 4 + n_bytes]
            saturated = [i for i, value in enumerate(values) if value == _SATURATED]
            if len(field) < 8 * len(saturated):
                raise CorruptFile("zip directory: a zip64 field is too short; the file is damaged, fetch it again")
            for k, i in enumerate(saturated):
                values[i] = int.from_bytes(field[8 * k : 8 * k + 8], "little")
            break
        at += 4 + n_bytes
    return values


def _member(source: memoryview, directory: int, raw_name: bytes, flags: int, method: int, sizes: list[int]) -> Member:
    """A member whose local header is where the directory says, with the same name and method.

    Sizes are the directory's: the local header has none where a data descriptor follows the data, or where zip64 is in use.
    """
    unpacked, packed, header = sizes
    name = _text(raw_name, flags)
    if header + _LOCAL.size > directory:
        raise CorruptFile(f"zip member {name!r}: header at byte {header} lies outside the members; the file is damaged, fetch it again")
    magic, _, _, local_method, _, _, _, _, _, n_name, n_extra = _LOCAL.unpack_from(source, header)
    name_at = header + _LOCAL.size
    offset = name_at + n_name + n_extra
    if magic != LOCAL_MAGIC or local_method != method or source[name_at : name_at + n_name] != raw_name or offset + packed > directory:
        raise CorruptFile(f"zip member {name!r}, byte {header}: local header and directory do not agree; the file is damaged, fetch it again")
    return Member(name, offset, packed, stored=method == 0 and packed == unpacked and not flags & _ENCRYPTED)


def _text(raw_name: bytes, flags: int) -> str:
    """Names are UTF-8 or code page 437; torch writes UTF-8 without the flag that says so."""
    try:
        return raw_name.decode()
    except UnicodeDecodeError as error:
        if flags & _UTF8_NAME:
            raise CorruptFile(f"zip member {raw_name!r}: the name is no UTF-8; the file is damaged, fetch it again") from error
        return raw_name.decode("cp437")
