"""Vector types for numba, which has none: values of up to 512 bits in registers, and expressions over them that emit LLVM code.

Inside functions made with `emit` a vector is a `Vector`: operators act lane by lane on unsigned numbers, an int stands for the same number in all lanes,
comparisons give masks. The functions at the end are instructions that not every processor has; compiled for one without them they abort the process
(see `arms`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from modelcodec.kernels import arms, memory


class VectorType(types.Type):
    """numba's view of a vector: so many lanes of so many bits."""

    def __init__(self, bits: int, lanes: int) -> None:
        self.bits, self.lanes = bits, lanes
        super().__init__(f"u{bits}x{lanes}")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, _llvm(kind.bits, kind.lanes))


def _llvm(bits: int, lanes: int) -> Any:
    return ir.VectorType(ir.IntType(bits), lanes)


u8x64, u16x32, u32x16 = VectorType(8, 64), VectorType(16, 32), VectorType(32, 16)


class Vector:
    """A vector in the course of emission."""

    __slots__ = ("builder", "value")

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    @property
    def bits(self) -> int:
        width: int = self.value.type.element.width
        return width

    @property
    def lanes(self) -> int:
        count: int = self.value.type.count
        return count

    def _new(self, value: Any) -> Vector:
        return Vector(self.builder, value)

    def _operand(self, other: Vector | int) -> Any:
        return other.value if isinstance(other, Vector) else ir.Constant(self.value.type, [other & ((1 << self.bits) - 1)] * self.lanes)

    def __add__(self, other: Vector | int) -> Vector:
        return self._new(self.builder.add(self.value, self._operand(other)))

    def __sub__(self, other: Vector | int) -> Vector:
        return self._new(self.builder.sub(self.value, self._operand(other)))

    def __mul__(self, other: Vector | int) -> Vector:
        return self._new(self.builder.mul(self.value, self._operand(other)))

    def __and__(self, other: Vector | int) -> Vector:
        return self._new(self.builder.and_(self.value, self._operand(other)))

    def __or__(self, other: Vector | int) -> Vector:
        return self._new(self.builder.or_(self.value, self._operand(other)))

    def __xor__(self, other: Vector | int) -> Vector:
        return self._new(self.builder.xor(self.value, self._operand(other)))

    def __lshift__(self, other: Vector | int) -> Vector:
        return self._new(self.builder.shl(self.value, self._operand(other)))

    def __rshift__(self, other: Vector | int) -> Vector:
        return self._new(self.builder.lshr(self.value, self._operand(other)))

    def below(self, other: Vector | int) -> Vector:
        return self._new(self.builder.icmp_unsigned("<", self.value, self._operand(other)))

    def equals(self, other: Vector | int) -> Vector:
        return self._new(self.builder.icmp_unsigned("==", self.value, self._operand(other)))

    def top_bit(self) -> Vector:
        """Mask of the lanes whose highest bit is set."""
        return self._new(self.builder.icmp_signed("<", self.value, self._operand(0)))

    def has(self, bit: int) -> Vector:
        """Mask of the lanes that have this bit set."""
        return self._new(self.builder.icmp_unsigned("!=", (self & (1 << bit)).value, self._operand(0)))

    def least(self, other: Vector | int) -> Vector:
        """The smaller one, lane by lane."""
        bound = self._new(self._operand(other))
        return self.below(bound).where(self, bound)

    def where(self, yes: Vector, no: Vector) -> Vector:
        """This mask's choice between two vectors."""
        return self._new(self.builder.select(self.value, yes.value, no.value))

    def as_number(self) -> Any:
        """This mask as an i64, lane 0 in the lowest bit."""
        number = self.builder.bitcast(self.value, ir.IntType(self.lanes))
        return number if self.lanes == 64 else self.builder.zext(number, ir.IntType(64))

    def total(self) -> Any:
        """The sum of all lanes, as a number of a lane's bits."""
        name = f"llvm.vector.reduce.add.v{self.lanes}i{self.bits}"
        kind = ir.FunctionType(self.value.type.element, [self.value.type])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [self.value])

    def of(self, bits: int) -> Vector:
        """The same bits as lanes of another width."""
        return self._new(self.builder.bitcast(self.value, _llvm(bits, self.bits * self.lanes // bits)))

    def widen(self, bits: int) -> Vector:
        return self._new(self.builder.zext(self.value, _llvm(bits, self.lanes)))

    def narrow(self, bits: int) -> Vector:
        return self._new(self.builder.trunc(self.value, _llvm(bits, self.lanes)))

    def pick(self, order: Sequence[int], other: Vector | None = None) -> Vector:
        """Lanes in the given order; numbers past this vector's lanes mean lanes of the other one."""
        second = self.value if other is None else other.value
        return self._new(self.builder.shuffle_vector(self.value, second, ir.Constant(_llvm(32, len(order)), list(order))))

    def each(self, numbers: Sequence[int]) -> Vector:
        """A constant vector of this vector's type."""
        return self._new(ir.Constant(self.value.type, list(numbers)))

    def call(self, name: str, *others: Vector) -> Vector:
        """The result of an LLVM intrinsic that gives a vector of this type."""
        values = [self.value, *(other.value for other in others)]
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(self.value.type, [value.type for value in values]), name)
        return self._new(self.builder.call(function, values))


def splat(builder: Any, number: Any, bits: int, lanes: int) -> Vector:
    """An i64, cut to `bits`, in all lanes."""
    kind = _llvm(bits, lanes)
    value = number if bits == 64 else builder.trunc(number, ir.IntType(bits))
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return Vector(builder, builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(_llvm(32, lanes), [0] * lanes)))


def load(builder: Any, address: Any, bits: int, lanes: int) -> Vector:
    """The vector at an address, at any alignment."""
    return Vector(builder, memory.load(builder, address, _llvm(bits, lanes)))


def store(address: Any, vector: Vector) -> None:
    memory.store(vector.builder, address, vector.value)


def offset(builder: Any, address: Any, n_bytes: int) -> Any:
    return builder.add(address, ir.Constant(ir.IntType(64), n_bytes))


def element(builder: Any, first: Any, n_bytes: int, i: Any) -> Any:
    """Address of the i-th of elements of so many bytes each."""
    return builder.add(first, builder.mul(i, ir.Constant(ir.IntType(64), n_bytes)))


def unsigned(builder: Any, address: Any, bits: int) -> Any:
    """The unsigned number at an address, as an i64."""
    return builder.zext(memory.load(builder, address, ir.IntType(bits)), ir.IntType(64))


def constant(builder: Any, numbers: Sequence[int]) -> Any:
    """Address of constant bytes."""
    data = ir.Constant(ir.ArrayType(ir.IntType(8), len(numbers)), list(numbers))
    return builder.ptrtoint(cgutils.global_constant(builder.module, "bytes", data), ir.IntType(64))


def collect(builder: Any, numbers: Sequence[Any]) -> Vector:
    """A vector of numbers, each a lane."""
    result = ir.Constant(ir.VectorType(numbers[0].type, len(numbers)), ir.Undefined)
    for i, number in enumerate(numbers):
        result = builder.insert_element(result, number, ir.Constant(ir.IntType(32), i))
    return Vector(builder, result)


def _wrapped(builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.UniTuple):
        return [_wrapped(builder, kind.dtype, builder.extract_value(value, i)) for i in range(kind.count)]
    return Vector(builder, value) if isinstance(kind, VectorType) else value


def _unwrapped(builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.UniTuple):
        return cgutils.pack_array(builder, [_unwrapped(builder, kind.dtype, x) for x in value])
    if isinstance(kind, types.Tuple):
        return cgutils.pack_struct(builder, [_unwrapped(builder, part, x) for part, x in zip(kind.types, value, strict=True)])
    return value.value if isinstance(value, Vector) else value


def emit(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """As `memory.emit`, but `body(builder, *values)` gets and gives a `Vector` for a vector and a sequence for a tuple."""

    def wrap(body: Callable[..., Any]) -> Any:
        def unwrapped(builder: Any, *values: Any) -> Any:
            result = body(builder, *(_wrapped(builder, kind, value) for kind, value in zip(signature.args, values, strict=True)))
            return _unwrapped(builder, signature.return_type, result)

        unwrapped.__name__, unwrapped.__doc__ = body.__name__, body.__doc__
        return memory.emit(signature)(unwrapped)

    return wrap


def fence(builder: Any) -> None:
    """Nothing at run time; loads stay on their side. Without it the compiler loads early and then has no registers left for what matters."""
    builder.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], True)


def prefetch(builder: Any, address: Any, write: bool = False) -> None:
    """Ask for the cache line at an address, which need not exist, to be there soon."""
    kinds = [ir.IntType(8).as_pointer(), *[ir.IntType(32)] * 3]
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), kinds), "llvm.prefetch.p0")
    pointer = builder.inttoptr(address, kinds[0])
    builder.call(function, [pointer, *(ir.Constant(ir.IntType(32), number) for number in (int(write), 3, 1))])


def opaque(builder: Any, number: Any) -> Any:
    """The same number, unknown to the compiler, which would otherwise put a load that only one side of a choice needs behind a jump nobody can foresee."""
    return builder.asm(ir.FunctionType(number.type, [number.type]), "", "=r,0", [number], False)


def loop(builder: Any, state: Sequence[Any], more: Callable[[Sequence[Any]], Any], body: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Any]:
    """Emit `while more(state): state = body(state)`, for a state of `Vector`s and numbers, and a `more` that gives an i1. Returns the last state."""
    before, test, inside, after = builder.block, *(builder.append_basic_block(name) for name in ("test", "inside", "after"))
    builder.branch(test)
    builder.position_at_end(test)
    current: list[Any] = []
    for x in state:
        value = x.value if isinstance(x, Vector) else x
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        current.append(Vector(builder, phi) if isinstance(x, Vector) else phi)
    builder.cbranch(more(current), inside, after)
    builder.position_at_end(inside)
    for x, new in zip(current, body(current), strict=True):
        (x.value if isinstance(x, Vector) else x).add_incoming(new.value if isinstance(new, Vector) else new, builder.block)
    builder.branch(test)
    builder.position_at_end(after)
    return current


# An instruction of x86 with SSSE3 and of 64-bit ARM


def shuffle_bytes(table: Vector, index: Vector) -> Vector:
    """table[index] for each of 16 bytes; zero where the index is 255."""
    return table.call("llvm.x86.ssse3.pshuf.b.128" if arms.X86 else "llvm.aarch64.neon.tbl1.v16i8", index)


# Instructions of x86 with AVX-512 VBMI


def permute(table: Vector, index: Vector) -> Vector:
    """table[index] for each lane, for 64 lanes of 8 bits or 32 of 16; index bits above the table's are ignored."""
    return table.call(f"llvm.x86.avx512.permvar.{'qi' if table.bits == 8 else 'hi'}.512", index)


def permute2(low: Vector, high: Vector, index: Vector) -> Vector:
    """The same for a table of two vectors."""
    return low.call(f"llvm.x86.avx512.vpermi2var.{'qi' if low.bits == 8 else 'hi'}.512", index, high)


def expand(vector: Vector, mask: Vector) -> Vector:
    """Lanes from the lowest on go to where the mask is set; the others are zero."""
    return vector.call(f"llvm.x86.avx512.mask.expand.v{vector.lanes}i{vector.bits}", vector.each([0] * vector.lanes), mask)


def compress(vector: Vector, mask: Vector) -> Vector:
    """Lanes where the mask is set go to the lowest places; the others are zero."""
    return vector.call(f"llvm.x86.avx512.mask.compress.v{vector.lanes}i{vector.bits}", vector.each([0] * vector.lanes), mask)


def bit_fields(vector: Vector, first: Vector) -> Vector:
    """For each byte of 64, 8 bits of its quadword of `vector`, from bit `first` (modulo 64) on, around the end."""
    return first.call("llvm.x86.avx512.pmultishift.qb.512", vector)
