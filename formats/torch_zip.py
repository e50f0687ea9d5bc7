"""What torch.save and torch.jit.save write since torch 1.6: a zip of stored members, a pickle and one member for each storage (torch/serialization.py)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from modelcodec.errors import UnsupportedFile
from modelcodec.formats.inert_pickle import PickleReader
from modelcodec.formats.torch_pickle import Place, describe
from modelcodec.formats.zip_members import LOCAL_MAGIC, Member, members
from modelcodec.types import Checkpoint

_PICKLE = "data.pkl"
_SCRIPT_PICKLE = "constants.pkl"
_BYTE_ORDER = "byteorder"
_BYTE_ORDER_MOST = 16


class TorchZip:
    """The unit is the storage, `data/<key>`; the tensors on them are views. All else in the archive is skeleton, TorchScript's code and constants too."""

    name: ClassVar[str] = "torch_zip"

    def sniff(self, source: memoryview, path: Path | None) -> bool:
        return source[:4] == LOCAL_MAGIC

    def read(self, source: memoryview, path: Path | None) -> Checkpoint:
        archive = members(source)
        root = next((name.removesuffix(_PICKLE) for name in archive if name.count("/") == 1 and name.endswith("/" + _PICKLE)), None)
        if root is None or not archive[root + _PICKLE].stored:
            raise UnsupportedFile("zip archive without a stored data.pkl, so not torch's; it is kept as bytes")
        pickle = PickleReader(_contents(source, archive[root + _PICKLE]), script=root + _SCRIPT_PICKLE in archive)
        found = pickle.read()
        data = root + "data/"
        places = {name.removeprefix(data): Place(member.offset, member.n_bytes) for name, member in archive.items() if member.stored and name.startswith(data)}
        byte_order = archive.get(root + _BYTE_ORDER)
        little_endian = byte_order is None or bytes(_contents(source, byte_order)[:_BYTE_ORDER_MOST]) == b"little"
        return describe(self.name, found, pickle.persistent_ids, places, n_steps=pickle.operations, little_endian=little_endian)


def _contents(source: memoryview, member: Member) -> memoryview:
    return source[member.offset : member.offset + member.n_bytes]
