"""Raw memory for kernels: an address is an int64, a value is loaded from or stored to it at any alignment.

Kernels get addresses instead of arrays so that one compiled version serves read-only, unaligned and memory-mapped arrays. Nothing here checks bounds: whoever
calls has proved that the bytes are there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, types, uint64
from numba.extending import intrinsic

ADDRESS = int64
_local = threading.local()


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Address of the first byte. The caller keeps the array alive and knows that it is contiguous."""
    address: int = array.__array_interface__["data"][0]
    return address


def scratch(n_bytes: int) -> int:
    """Address of at least `n_bytes` of memory that belongs to this thread until its next call of this function, aligned to 64 bytes, with any contents."""
    buffer = getattr(_local, "buffer", None)
    if buffer is None or buffer.size < n_bytes + 64:
        buffer = _local.buffer = np.empty(n_bytes + 64, np.uint8)
        _local.address = -(-address_of(buffer) // 64) * 64
    address: int = _local.address
    return address


def emit(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a function that kernels can call out of `body(builder, *llvm_values)`, which emits its LLVM code; `signature` gives its numba types."""

    def wrap(body: Callable[..., Any]) -> Any:
        def generate(context: Any, builder: Any, _: Any, values: Any) -> Any:
            result = body(builder, *values)
            return context.get_dummy_value() if result is None else result

        def definition(context: Any, *arguments: Any) -> Any:
            return signature, generate

        definition.__name__, definition.__doc__ = body.__name__, body.__doc__
        names = ("context", *(f"x{i}" for i in range(len(signature.args))))  # numba cannot call intrinsics with *arguments, and asks this instead
        definition.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])  # type: ignore[attr-defined]
        return intrinsic(definition)

    return wrap


def load(builder: Any, address: Any, kind: Any) -> Any:
    """Emit a load of an LLVM type from an address."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def store(builder: Any, address: Any, value: Any) -> None:
    """Emit a store of an LLVM value to an address."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 1


def _loader(bits: int, result: Any = int64) -> Any:
    def body(builder: Any, address: Any) -> Any:
        value = load(builder, address, ir.IntType(bits))
        return value if bits == 64 else builder.zext(value, ir.IntType(64))

    body.__name__ = f"load_u{bits}"
    return emit(result(ADDRESS))(body)


def _storer(bits: int, value: Any = int64) -> Any:
    def body(builder: Any, address: Any, x: Any) -> None:
        store(builder, address, x if bits == 64 else builder.trunc(x, ir.IntType(bits)))

    body.__name__ = f"store_u{bits}"
    return emit(types.void(ADDRESS, value))(body)


load_u8, load_u16, load_u32, load_u64, load_i64 = _loader(8), _loader(16), _loader(32), _loader(64, uint64), _loader(64)
"""The unsigned number at an address, as int64 (64 bits: as uint64, or as the int64 that it stands for)."""
store_u8, store_u16, store_u32, store_u64 = _storer(8), _storer(16), _storer(32), _storer(64, uint64)
"""Store the low bits of an int64 (64 bits: of a uint64) at an address."""


@emit(int64(uint64))
def trailing_zeros(builder: Any, x: Any) -> Any:
    """Number of zero bits below the lowest one; x is not zero."""
    return builder.cttz(x, ir.Constant(ir.IntType(1), 1))


@emit(int64(int64))
def leading_zeros(builder: Any, x: Any) -> Any:
    """Number of zero bits of 64 above the highest one; x is above zero."""
    return builder.ctlz(x, ir.Constant(ir.IntType(1), 1))


@emit(types.void(ADDRESS, ADDRESS, int64))
def copy(builder: Any, to: Any, source: Any, n_bytes: Any) -> None:
    """Copy bytes between places that do not overlap."""
    pointer = ir.IntType(8).as_pointer()
    function = builder.module.declare_intrinsic("llvm.memcpy", [pointer, pointer, ir.IntType(64)])
    builder.call(function, [builder.inttoptr(to, pointer), builder.inttoptr(source, pointer), n_bytes, ir.Constant(ir.IntType(1), 0)])


@emit(types.void(ADDRESS, int64, int64))
def fill(builder: Any, to: Any, byte: Any, n_bytes: Any) -> None:
    """Set bytes to the low 8 bits of a number."""
    pointer = ir.IntType(8).as_pointer()
    function = builder.module.declare_intrinsic("llvm.memset", [pointer, ir.IntType(64)])
    builder.call(function, [builder.inttoptr(to, pointer), builder.trunc(byte, ir.IntType(8)), n_bytes, ir.Constant(ir.IntType(1), 0)])
