"""What every arm of the kernels has to do, in one function that `test_arms` and `run_on_arm.sh` call on different processors.

Needs numpy, numba and xxhash alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import kernel_rows
import numpy as np

from modelcodec.kernels import arms, class_rans, fixed_length, frequencies, planes, rans

Array = kernel_rows.Array


@dataclass(frozen=True)
class Stream:
    """Words to code: u1 and u2 as they are (`low_bits` None), u2 and u4 also cut by split_float."""

    words: Array
    low_bits: int | None
    table: frequencies.Table
    lanes_log2: int
    groups: int
    classes: class_rans.Classes | None = None
    """Coded by class_rans, in the place of the table, as words of the group from `first` on."""
    first: int = 0

    @property
    def symbols(self) -> Array:
        if self.low_bits is None:
            return self.words
        return self.words >> (8 * self.words.itemsize - 16 + self.low_bits) & (1 << (15 - self.low_bits)) - 1

    @property
    def symbol_width(self) -> int:
        return self.words.itemsize if self.low_bits is None else 1 if self.low_bits >= 7 else 2


def _table(symbols: Array, bits: int, escape: bool) -> frequencies.Table:
    width = 1 if symbols.max(initial=0) < 256 else 2
    return frequencies.normalise(np.bincount(symbols.astype(np.int64)).astype(np.int64), bits, width, escape=escape)


def streams(seed: int) -> Iterator[Stream]:
    """Sizes around those of rounds and of pieces, every cut, tables of every size and with symbols near and far apart."""
    draw = np.random.default_rng(seed)
    sizes = (1, 63, 64, 127, 128, 129, 700, 64 * 64 * 2, 64 * 64 * 2 + 1, 9001)
    for low_bits, spread, bits in [
        *((s, spread, 8 + (s + i) % 5) for s in range(14) for i, spread in enumerate((3, 30, 400, 3000))),
        *((None, spread, bits) for bits in range(8, 13) for spread in (1, 60, 500, 60000)),
    ]:
        n = int(draw.choice(sizes))
        width = int(draw.choice((1, 2) if low_bits is None else (2, 4)))
        most = (1 << 8 * width if low_bits is None else 1 << (15 - low_bits)) - 1
        symbols = np.minimum(draw.exponential(spread / 4, n).astype(np.int64) * int(draw.choice((1, 1, 7))) + int(draw.integers(most // 2 + 1)), most)
        symbols[draw.random(n) < 0.01] = int(draw.integers(most + 1))
        words = symbols
        if low_bits is not None:
            noise = draw.integers(1 << 8 * width, size=n, dtype=np.uint64).astype(np.int64)
            up = 8 * width - 16 + low_bits
            words = noise & ~(most << up) | symbols << up
        known = symbols[:: int(draw.choice((1, 1, 1, 3)))]  # a table need not know every word, nor have an escape
        lanes_log2, groups = ((6, 1), (6, 2), (6, 2), (6, 2), (3, 1))[int(draw.integers(5))]
        stream = Stream(words.astype(kernel_rows.WORD[width]), low_bits, _table(known, bits, bool(draw.integers(2))), lanes_log2, groups)
        yield stream
        yield _classed(stream, min(bits, class_rans.MOST_BITS), draw)


def _classed(stream: Stream, bits: int, draw: np.random.Generator) -> Stream:
    """The same words with classes, whose tables each know some of them."""
    n, columns, first, k = stream.words.size, int(draw.choice((1, 7, 64, 77, 1000))), int(draw.integers(99)), int(draw.choice((1, 2, 32)))
    scales = [draw.integers(class_rans.SCALES, size=size, dtype=np.uint8) for size in ((first + n) // columns + 1, columns)]
    class_of = draw.integers(k, size=class_rans.SUMS, dtype=np.uint8)
    known = stream.symbols[stream.symbols < class_rans.ESCAPE]
    tables = tuple(_table(known[:: int(draw.integers(1, 4))] if known.size else np.zeros(1), bits, True) for _ in range(k))
    return replace(stream, classes=class_rans.Classes(scales[0], scales[1], class_of, tables), first=first)


@dataclass(frozen=True)
class Coded:
    payload: Array
    packed: rans.Packed
    rest: Array
    low: Array | None


Place = Callable[[int], Array]
"""Gives so many bytes of memory."""


def _put(place: Place, array: Array) -> Array:
    there = place(array.nbytes).view(array.dtype)
    there[:] = array
    return there


def pack(stream: Stream, place: Place) -> Coded:
    x = _put(place, stream.words)
    out = place(rans.pack_bound(x.size, stream.symbol_width, stream.lanes_log2, stream.groups))
    rest, low, lanes = place(0), None, (stream.lanes_log2, stream.groups)
    if stream.low_bits is not None:
        rest = place(planes.planes_size(x.size, stream.low_bits + 1))
        low = place(2 * x.size).view(np.uint16) if x.itemsize == 4 else None
    if stream.low_bits is None and stream.classes is None:
        packed = rans.pack(x, stream.table, *lanes, out)
    elif stream.low_bits is None:
        packed = class_rans.pack(x, *lanes, stream.classes, stream.first, out)
    elif stream.classes is None:
        packed = rans.pack_split(x, stream.low_bits, stream.table, *lanes, out, rest, low)
    else:
        packed = class_rans.pack_split(x, stream.low_bits, *lanes, stream.classes, stream.first, out, rest, low)
    return Coded(out[: packed.n_bytes], packed, rest, low)


def unpack(stream: Stream, coded: Coded, place: Place) -> tuple[frequencies.Status, Array]:
    payload, rest = _put(place, coded.payload), _put(place, coded.rest)
    low = None if coded.low is None else _put(place, coded.low)
    out = place(stream.words.nbytes).view(stream.words.dtype)
    how = stream.lanes_log2, stream.groups, coded.packed.units_a, coded.packed.units_b, coded.packed.n_escapes
    if stream.low_bits is None and stream.classes is None:
        return rans.unpack(payload, stream.table, *how, out), out
    if stream.low_bits is None:
        return class_rans.unpack(payload, *how, stream.classes, stream.first, out), out
    if stream.classes is None:
        return rans.unpack_split(payload, stream.table, *how, stream.low_bits, rest, low, out), out
    return class_rans.unpack_split(payload, *how, stream.classes, stream.first, stream.low_bits, rest, low, out), out


def damaged(stream: Stream, coded: Coded, source: random.Random) -> Coded:
    """Bits turned over, or a payload of random bytes that takes too many units or too few."""
    packed = coded.packed
    if source.randrange(2) and packed.n_bytes:
        payload = coded.payload.copy()
        for _ in range(source.choice((1, 1, 9))):
            payload[source.randrange(payload.size)] ^= 1 << source.randrange(8)
        return Coded(payload, packed, coded.rest, coded.low)
    n = stream.words.size
    units_a, n_escapes = source.choice((0, 1, n // 2, n)), min(source.randrange(300), n)
    units_b = source.choice((0, n // 2)) if stream.groups == 2 else 0
    size = 2 * (units_a + units_b) + (4 * stream.groups << stream.lanes_log2) + n_escapes * stream.symbol_width
    payload = np.frombuffer(source.randbytes(size), np.uint8) if source.randrange(2) else np.zeros(size, np.uint8)
    return Coded(payload, rans.Packed(rans.Status.OK, units_a, units_b, n_escapes, size), coded.rest, coded.low)


def _bf16(draw: np.random.Generator, n: int) -> Array:
    words: Array = (draw.normal(0, 0.02, n).astype("<f4").view("<u4") >> 16).astype("<u2")
    return words


def products(place: Callable[[int], Array]) -> Iterator[bytes]:
    """Matrices in the fixed-length form, times one to four vectors: each comes back bit for bit.

    Beside neighbouring exponents they have zeros of both signs, subnormals, and numbers far from the others.
    """
    draw = np.random.default_rng(3)
    for n_rows, n_columns, part in ((1, 1, 32), (3, 300, 32), (7, 512, 64), (37, 2050, 128)):
        words, n_words = _put(place, _bf16(draw, n_rows * n_columns)), -(-n_columns // (8 * part)) * part
        for step, word in ((37, 0), (41, 0x8000), (401, 0x0003), (509, 0x40B2), (601, 0x8D22)):
            words[step % 7 :: step] = word
        counts = np.zeros(fixed_length.N_COUNTS, np.int64)
        fixed_length.count(words.ctypes.data, words.size, counts)
        base = 108
        n_escapes = words.size - int(counts[base + 1 : base + 1 + fixed_length.CODES].sum() + counts[-1])
        sizes = 4 * n_rows * n_words, 8 * n_rows * n_words, 4 * n_rows + 4, 8 * n_escapes, 2 * n_escapes
        planes = [place(size) for size in sizes]
        codes, signed_mantissas, *lists = (plane.ctypes.data for plane in planes)
        spare = place(16 * n_words).ctypes.data
        shape = n_rows, n_columns, n_words, part, base
        assert fixed_length.pack(words.ctypes.data, *shape, 0, 0, spare, codes, signed_mantissas, *lists) == n_escapes
        planes[2][-4:] = np.frombuffer(np.int32(n_escapes).tobytes(), np.uint8)
        out = place(words.nbytes)
        fixed_length.unpack(codes, signed_mantissas, *lists, n_columns, n_words, part, base, np.arange(n_rows), spare, out.ctypes.data)
        assert (out.view("<u2") == words).all()
        yield b"".join(plane.tobytes() for plane in planes)
        x = _put(place, _bf16(draw, fixed_length.MOST_VECTORS * n_columns))
        bias, sums = _put(place, _bf16(draw, n_rows)), place(4 * fixed_length.ROWS * fixed_length.MOST_VECTORS).ctypes.data
        for n, multiply in fixed_length.MULTIPLY.items():
            scaled, factors = place(32 * n * n_words).ctypes.data, np.empty(n)
            assert fixed_length.scale(x.ctypes.data, n, n_columns, 8 * n_words, scaled, factors)
            for width in (2, 4):
                y = place(width * n * n_rows)
                vectors = scaled, factors, bias.ctypes.data if width == 4 else 0, y.ctypes.data, width == 2
                multiply(codes, signed_mantissas, *lists, *vectors, *shape, 0, n_rows, sums)
                yield y.tobytes()


class Guarded:
    """Memory that ends where nothing may be touched: a byte too far ends the process."""

    def __init__(self) -> None:
        self.kept: list[mmap.mmap] = []

    def __call__(self, n_bytes: int) -> Array:
        page = mmap.PAGESIZE
        room = -(-n_bytes // page) * page
        memory = mmap.mmap(-1, room + 2 * page)  # pages before and after
        self.kept.append(memory)
        all_bytes = np.frombuffer(memory, np.uint8)
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for first in (0, room + page):
            if protect(ctypes.c_void_p(all_bytes.ctypes.data + first), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        return all_bytes[page + room - n_bytes : page + room]

    def scratch(self, n_bytes: int) -> int:
        return int(self(n_bytes).ctypes.data)


def work(seeds: range = range(3)) -> tuple[str, str]:
    """The arm, and a digest of everything it gives: payloads, words, and what it finds wrong in damaged payloads."""
    for row in kernel_rows.KERNEL_ROWS:
        if row.name.startswith(("rans.", "class_rans.")):
            for seed in range(20):
                assert row.run(*row.inputs(random.Random(seed))) == row.reference(*row.inputs(random.Random(seed))), f"{row.name}, case {seed}"
    digest, source = hashlib.sha256(), random.Random(1)
    for part in products(Guarded() if hasattr(mmap, "MAP_PRIVATE") else lambda n_bytes: np.empty(n_bytes, np.uint8)):
        digest.update(part)
    own_scratch = rans.scratch
    for seed in seeds:
        for stream in streams(seed):
            place = Guarded() if hasattr(mmap, "MAP_PRIVATE") else lambda n_bytes: np.empty(n_bytes, np.uint8)
            if isinstance(place, Guarded):
                rans.scratch = class_rans.scratch = place.scratch
            try:
                coded = pack(stream, place)
                digest.update(repr(coded.packed).encode())
                if coded.packed.status:  # what was written until then is unspecified
                    continue
                digest.update(b"".join(part.tobytes() for part in (coded.payload, coded.rest, coded.low) if part is not None))
                status, out = unpack(stream, coded, place)
                assert status == 0, stream
                assert (out == stream.words).all(), stream
                digest.update(bytes(int(unpack(stream, damaged(stream, coded, source), place)[0]) for _ in range(3)))
            finally:
                rans.scratch = class_rans.scratch = own_scratch
    return arms.ARM, digest.hexdigest()


if __name__ == "__main__":
    print(*work())
