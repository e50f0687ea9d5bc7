"""What torch.save wrote before torch 1.6, and still writes on request: five pickles, then the storages (torch/serialization.py, _legacy_save)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from modelcodec.errors import CorruptFile, TruncatedFile, UnsupportedFile
from modelcodec.formats.inert_pickle import Dict, PickleReader
from modelcodec.formats.runs import join_small
from modelcodec.formats.torch_pickle import Place, describe, storages
from modelcodec.types import Checkpoint

_MAGIC = 0x1950A86A20F9469CFC6C
_MAGIC_BYTES = _MAGIC.to_bytes(10, "little")
_VERSION = 1001
_COUNT_BYTES = 8
_SNIFFED = 32


class TorchLegacy:
    """The unit is the storage, `data/<key>`; the tensors on them are views. torch's oldest files, which are tar archives, are kept as bytes."""

    name: ClassVar[str] = "torch_legacy"

    def sniff(self, source: memoryview, path: Path | None) -> bool:
        return _MAGIC_BYTES in bytes(source[:_SNIFFED])

    def read(self, source: memoryview, path: Path | None) -> Checkpoint:
        pickle = PickleReader(source)
        if pickle.read() != _MAGIC or pickle.read() != _VERSION:
            raise UnsupportedFile("no torch file of version 1001; it is kept as bytes")
        system = pickle.read()
        root = pickle.read()
        references = pickle.persistent_ids
        keys = pickle.read()
        known = storages(references)
        places: dict[str, Place] = {}
        position = pickle.position
        for key in keys if type(keys) is list else ():
            storage = known.get(key) if type(key) is str else None
            if storage is None or key in places:
                raise CorruptFile(f"torch file, byte {position}: the list of storages does not fit the pickle; the file is damaged, fetch it again")
            numel = int.from_bytes(source[position : position + _COUNT_BYTES], "little")
            place = Place(position + _COUNT_BYTES, storage.dtype.n_bytes((numel,)))
            position = place.offset + place.n_bytes
            if position > len(source):
                raise TruncatedFile(f"torch file, storage {key!r}: ends at byte {position}, the file at {len(source)}; fetch the rest of the file")
            places[key] = place
        found = describe(self.name, root, references, places, n_steps=pickle.operations, little_endian=_is_little_endian(system))
        return join_small(found) if found.views else found


def _is_little_endian(system: object) -> bool:
    """What the third pickle says of the machine that wrote the file."""
    return not (isinstance(system, Dict) and any(key == "little_endian" and value is False for key, value in system.items))
