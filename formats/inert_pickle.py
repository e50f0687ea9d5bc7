"""Reads a pickle as data: no object is built, nothing is imported, nothing is called.

A pickle is a program. This reader runs the part of it that makes dictionaries, lists, tuples, numbers and text; where the program names a class or a function,
an inert `Global` stands in its place, where it calls one, a `Reduced`. Names are checked against an exact list; a pickle that needs any other is refused with
UnsafeInput. Opcodes: protocols 0 to 5 (CPython's Lib/pickletools.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct
from typing import TypeAlias

from modelcodec.errors import CorruptFile, LimitExceeded, UnsafeInput, UnsupportedFile
from modelcodec.limits import LIMITS, Limits

_PROTOCOL_MOST = 5
_LINE_MOST = 1 << 20
_INTEGER_BYTES_MOST = 255
"""Longer integers are no sizes, steps or seeds; they would only cost time."""
_QUOTED_MOST = 100


def _names(table: str) -> frozenset[tuple[str, str]]:
    """Pairs of module and name, from lines of a module and its names."""
    return frozenset((module, name) for module, *names in map(str.split, table.strip().splitlines()) for name in names)


ALLOWED = _names("""
    collections          OrderedDict Counter
    builtins             set frozenset bytes bytearray
    __builtin__          set frozenset bytes bytearray
    _codecs              encode
    torch                Size device Tensor
    torch                float64 float32 float16 bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2
    torch                int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool complex32 complex64 complex128 qint8 quint8 qint32 quint4x2 quint2x4
    torch                DoubleStorage FloatStorage HalfStorage BFloat16Storage LongStorage IntStorage ShortStorage CharStorage ByteStorage BoolStorage
    torch                ComplexDoubleStorage ComplexFloatStorage QInt8Storage QUInt8Storage QInt32Storage QUInt4x2Storage QUInt2x4Storage UntypedStorage
    torch                per_tensor_affine per_channel_affine per_tensor_symmetric per_channel_symmetric per_channel_affine_float_qparams
    torch.storage        UntypedStorage TypedStorage
    torch.serialization  _get_layout
    torch.nn.parameter   Parameter
    torch._tensor        _rebuild_from_type_v2
    torch._utils         _rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state
    torch._utils         _rebuild_sparse_tensor _rebuild_qtensor _rebuild_meta_tensor_no_storage
""")
"""The only names a pickle may mention: what torch.save writes for tensors and optimizer state. Reading one never touches the thing that has the name."""

_SCRIPT_ALLOWED = _names("""
    torch.jit._pickle    build_intlist build_tensorlist build_doublelist build_boollist restore_type_tag
""")
_SCRIPT_ROOT = "__torch__"


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function. Never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


_ORDERED_DICT = Global("collections", "OrderedDict")
_SETS = frozenset(Global(module, name) for module, name in ALLOWED if name in ("set", "frozenset"))


@dataclass(eq=False, slots=True)
class Dict:
    """A dict or OrderedDict as its pairs, in order, repeated keys included: no untrusted key is ever hashed. `state`: what the pickle sets as attributes."""

    items: list[tuple[object, object]] = field(default_factory=list)
    state: object = None


@dataclass(eq=False, slots=True)
class Set:
    """A set or frozenset as the list of its members, not hashed."""

    items: list[object] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Reduced:
    """A call that was not made: of `callable` with `args`; `state` is what the pickle would then set on the result."""

    callable: Global
    args: tuple[object, ...]
    state: object = None


@dataclass(frozen=True, eq=False, slots=True)
class PersistentId:
    """A reference to something outside the pickle, in torch files a storage."""

    value: tuple[object, ...]


def read_pickle(data: memoryview | bytes, limits: Limits = LIMITS) -> object:
    """What the first pickle in `data` describes, as None, bool, int, float, str, bytes, list, tuple and this module's inert classes.

    Raises UnsafeInput for a pickle that names anything outside `ALLOWED`, UnsupportedFile for one beyond this reader, CorruptFile or LimitExceeded.
    """
    return PickleReader(data, limits=limits).read()


class PickleReader:
    """Reads pickles that follow each other in `data`, from `position` on.

    `persistent_ids` collects the references of the last one, in order. `operations` counts the steps of all. With `script`, names below `__torch__` are read
    too: TorchScript's classes, whose code lies inside the archive and which no Python import finds.
    """

    __slots__ = ("_copied", "_data", "_limits", "_marks", "_memo", "_script", "_stack", "operations", "persistent_ids", "position")

    def __init__(self, data: memoryview | bytes, *, script: bool = False, limits: Limits = LIMITS) -> None:
        self._data = memoryview(data)
        self._script = script
        self._limits = limits
        self._copied = 0
        self._stack: list[object] = []
        self._marks: list[list[object]] = []
        self._memo: dict[int, object] = {}
        self.position = 0
        self.operations = 0
        self.persistent_ids: list[PersistentId] = []

    def read(self) -> object:
        self._stack, self._marks, self._memo, self.persistent_ids = [], [], {}, []
        data, n_bytes, most = self._data, len(self._data), self._limits.pickle_operations
        while True:
            self.operations += 1
            if self.operations > most:
                self._charge(0)
            at = self.position
            if at >= n_bytes:
                self._take(1)
            self.position = at + 1
            code = data[at]
            if code == _STOP:
                return self._pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise self._beyond(f"opcode {code:#04x}")
            operation(self)

    def _charge(self, steps: int) -> None:
        self.operations += steps
        if self.operations > self._limits.pickle_operations:
            raise LimitExceeded(f"pickle, byte {self.position}: more than {self._limits.pickle_operations} steps; raise the limit pickle_operations")

    # Bytes. Every length is untrusted and proved before it is used.

    def _take(self, n: int) -> memoryview:
        end = self.position + n
        if end > len(self._data):
            raise self._corrupt(f"{n} bytes wanted, {len(self._data) - self.position} left")
        piece = self._data[self.position : end]
        self.position = end
        return piece

    def _uint(self, n_bytes: int) -> int:
        at = self.position
        if n_bytes == 1 and at < len(self._data):  # most of them
            self.position = at + 1
            return self._data[at]
        return int.from_bytes(self._take(n_bytes), "little")

    def _line(self) -> bytes:
        found = _NEWLINE.search(self._data, self.position, self.position + _LINE_MOST)
        if found is None:
            raise self._corrupt("a line does not end")
        line = bytes(self._take(found.start() - self.position))
        self.position += 1
        self._earn(len(line))
        return line

    def _earn(self, n_bytes: int) -> None:
        """Count bytes that are copied out of the source."""
        self._copied += n_bytes
        if self._copied > self._limits.header_bytes:
            raise LimitExceeded(f"pickle, byte {self.position}: more than {self._limits.header_bytes} bytes of text; raise the limit header_bytes")

    def _corrupt(self, fact: str) -> CorruptFile:
        return CorruptFile(f"pickle, byte {self.position}: {fact}; the file is damaged, fetch it again")

    def _beyond(self, fact: str) -> UnsupportedFile:
        return UnsupportedFile(f"pickle, byte {self.position}: {fact}, which is beyond this reader; the file is kept as bytes")

    # The machine: a stack, the stacks below each mark, and the memo.

    def _pop(self) -> object:
        if not self._stack:
            raise self._corrupt("the stack is empty")
        return self._stack.pop()

    def _top(self) -> object:
        if not self._stack:
            raise self._corrupt("the stack is empty")
        return self._stack[-1]

    def _push_mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _discard(self) -> None:
        """POP takes an object, or the mark where nothing lies above it."""
        if self._stack or not self._marks:
            self._pop()
        else:
            self._pop_mark()

    def _pop_mark(self) -> list[object]:
        """What was pushed since the last mark."""
        if not self._marks:
            raise self._corrupt("a mark is missing")
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _put(self, index: int) -> None:
        # Picklers number the memo from 0 on, so an index is never above the steps so far; keys from that range cannot be chosen to collide in a hash table.
        if not 0 <= index < self.operations:
            raise self._beyond(f"memo index {index}, which no pickler writes here")
        self._memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise self._corrupt(f"memo entry {index} was never written")
        self._stack.append(self._memo[index])

    # Operations, by what they make.

    def _protocol(self) -> None:
        if (version := self._uint(1)) > _PROTOCOL_MOST:
            raise self._beyond(f"protocol {version}")

    def _frame(self) -> None:
        if self._uint(8) > len(self._data) - self.position:
            raise self._corrupt("a frame is longer than the file")

    def _integer(self, n_bytes: int) -> None:
        if n_bytes > _INTEGER_BYTES_MOST:
            raise LimitExceeded(f"pickle, byte {self.position}: an integer of {n_bytes} bytes; the file is damaged or hostile")
        self._stack.append(int.from_bytes(self._take(n_bytes), "little", signed=True))

    def _number(self, make: Callable[[str], int | float]) -> int | float:
        line = self._line()
        if len(line) > _INTEGER_BYTES_MOST:
            raise LimitExceeded(f"pickle, byte {self.position}: a number of {len(line)} digits; the file is damaged or hostile")
        try:
            return make(line.decode("ascii").removesuffix("L"))
        except ValueError as error:
            raise self._corrupt("a number is none") from error

    def _integer_line(self) -> int:
        return int(self._number(int))

    def _int_or_bool_line(self) -> None:
        is_bool = bytes(self._data[self.position : self.position + 3]) in (b"00\n", b"01\n")
        value = self._integer_line()
        self._stack.append(bool(value) if is_bool else value)

    def _text(self, length_bytes: int) -> None:
        data = self._counted(length_bytes)
        try:
            self._stack.append(str(data, "utf-8", "surrogatepass"))
        except UnicodeDecodeError as error:
            raise self._corrupt("text is no UTF-8") from error

    def _text_line(self) -> None:
        try:
            self._stack.append(str(self._line(), "raw-unicode-escape"))
        except UnicodeDecodeError as error:
            raise self._corrupt("text has a broken escape") from error

    def _quoted_line(self) -> None:
        line = self._line()
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"') or b"\\" in line:
            raise self._beyond("a quoted string with escapes")
        self._stack.append(line[1:-1].decode("latin-1"))

    def _counted(self, length_bytes: int) -> memoryview:
        data = self._take(self._uint(length_bytes))
        self._earn(len(data))
        return data

    def _dict_of(self, flat: list[object]) -> Dict:
        if len(flat) % 2:
            raise self._corrupt("a dictionary has a key without a value")
        return Dict(list(zip(flat[::2], flat[1::2], strict=True)))

    def _tuple(self, n: int) -> None:
        if len(self._stack) < n:
            raise self._corrupt("the stack is empty")
        items = tuple(self._stack[len(self._stack) - n :])
        del self._stack[len(self._stack) - n :]
        self._stack.append(items)

    def _append(self, items: list[object]) -> None:
        target = self._top()
        if type(target) is not list:
            raise self._beyond("appends to something that is no list")
        target.extend(items)

    def _set_items(self, flat: list[object]) -> None:
        target = self._top()
        if type(target) is not Dict:
            raise self._beyond("sets items of something that is no dictionary")
        target.items.extend(self._dict_of(flat).items)

    def _add(self, items: list[object]) -> None:
        target = self._top()
        if type(target) is not Set:
            raise self._beyond("adds to something that is no set")
        target.items.extend(items)

    # Operations that CPython would let reach outside.

    def _global(self, module: object, name: object) -> Global:
        """The name as data, if it may be mentioned. The one place that decides what is safe."""
        if type(module) is str and type(name) is str:
            if (module, name) in ALLOWED:
                return Global(module, name)
            if self._script and ((module, name) in _SCRIPT_ALLOWED or module.partition(".")[0] == _SCRIPT_ROOT):
                return Global(module, name)
            raise self._unsafe(f"wants {f'{module[:_QUOTED_MOST]}.{name[:_QUOTED_MOST]}'!a}, which is not on the list of inert names")
        raise self._unsafe("wants something that is no name")

    def _unsafe(self, fact: str) -> UnsafeInput:
        return UnsafeInput(f"pickle, byte {self.position}: {fact}; do not unpickle it unless you trust its author")

    def _global_lines(self) -> Global:
        try:
            module, name = self._line().decode(), self._line().decode()
        except UnicodeDecodeError as error:
            raise self._corrupt("a name is no UTF-8") from error
        return self._global(module, name)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._stack.append(self._global(module, name))

    def _call(self, function: object, args: object) -> None:
        """Note a call without making it; an OrderedDict becomes the Dict that it would be."""
        if type(function) is not Global:
            raise self._unsafe("calls something that is no name")
        if type(args) is not tuple:
            raise self._corrupt("a call's arguments are no tuple")
        if function == _ORDERED_DICT:
            self._stack.append(Dict(self._pairs(args)))
        elif function in _SETS and len(args) == 1 and type(args[0]) is list:
            self._stack.append(Set(args[0]))
        else:
            self._stack.append(Reduced(function, args))

    def _pairs(self, args: tuple[object, ...]) -> list[tuple[object, object]]:
        """An OrderedDict's argument: none, or a list of pairs, as Python 2 wrote it."""
        if not args:
            return []
        pairs = args[0]
        # The list may be shared by many calls; each copy is charged, so that it is earned.
        self._charge(len(pairs) if type(pairs) is list else 0)
        if len(args) != 1 or type(pairs) is not list or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise self._beyond("an OrderedDict of something else than pairs")
        return [(key, value) for key, value in pairs]

    def _reduce(self) -> None:
        args, function = self._pop(), self._pop()
        self._call(function, args)

    def _new_with_keywords(self) -> None:
        self._pop(), self._pop()
        if type(self._pop()) is not Global:
            raise self._unsafe("builds something that has no name")
        raise self._beyond("builds an object with keyword arguments")

    def _object(self) -> None:
        function, *args = self._pop_mark() or [None]
        self._call(function, tuple(args))

    def _instance(self) -> None:
        function = self._global_lines()
        self._call(function, tuple(self._pop_mark()))

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if not isinstance(target, Dict | Reduced):
            raise self._beyond("sets the state of something that has none")
        target.state = state

    def _extension(self) -> None:
        raise self._unsafe("calls through the extension registry")

    def _persistent(self) -> None:
        value = self._pop()
        if type(value) is not tuple:
            raise self._beyond("a persistent id that is no tuple")
        self.persistent_ids.append(PersistentId(value))
        self._stack.append(self.persistent_ids[-1])


_NEWLINE = re.compile(rb"\n")
_FLOAT = Struct(">d")
_STOP = ord(".")

_Operation: TypeAlias = Callable[[PickleReader], None]


def _push(make: Callable[[PickleReader], object]) -> _Operation:
    """The operation that pushes what `make` makes."""

    def operation(p: PickleReader) -> None:
        value = make(p)  # first: taking a mark away changes which stack is on top
        p._stack.append(value)

    return operation


_OPERATIONS: dict[int, _Operation] = {
    ord(code): operation
    for code, operation in {
        # the stream
        b"\x80": PickleReader._protocol,
        b"\x95": PickleReader._frame,
        # stack and memo
        b"(": PickleReader._push_mark,
        b"0": PickleReader._discard,
        b"1": lambda p: p._pop_mark().clear(),
        b"2": _push(PickleReader._top),
        b"p": lambda p: p._put(p._integer_line()),
        b"q": lambda p: p._put(p._uint(1)),
        b"r": lambda p: p._put(p._uint(4)),
        b"\x94": lambda p: p._put(len(p._memo)),
        b"g": lambda p: p._get(p._integer_line()),
        b"h": lambda p: p._get(p._uint(1)),
        b"j": lambda p: p._get(p._uint(4)),
        # numbers
        b"N": _push(lambda p: None),
        b"\x88": _push(lambda p: True),
        b"\x89": _push(lambda p: False),
        b"I": PickleReader._int_or_bool_line,
        b"J": lambda p: p._integer(4),
        b"K": _push(lambda p: p._uint(1)),
        b"M": _push(lambda p: p._uint(2)),
        b"L": _push(PickleReader._integer_line),
        b"\x8a": lambda p: p._integer(p._uint(1)),
        b"\x8b": lambda p: p._integer(p._uint(4)),
        b"F": _push(lambda p: p._number(float)),
        b"G": _push(lambda p: _FLOAT.unpack(p._take(8))[0]),
        # text and bytes; Python 2's strings are either, read as Latin-1
        b"V": PickleReader._text_line,
        b"X": lambda p: p._text(4),
        b"\x8c": lambda p: p._text(1),
        b"\x8d": lambda p: p._text(8),
        b"S": PickleReader._quoted_line,
        b"T": _push(lambda p: str(p._counted(4), "latin-1")),
        b"U": _push(lambda p: str(p._counted(1), "latin-1")),
        b"B": _push(lambda p: bytes(p._counted(4))),
        b"C": _push(lambda p: bytes(p._counted(1))),
        b"\x8e": _push(lambda p: bytes(p._counted(8))),
        b"\x96": _push(lambda p: bytes(p._counted(8))),
        # containers
        b")": _push(lambda p: ()),
        b"\x85": lambda p: p._tuple(1),
        b"\x86": lambda p: p._tuple(2),
        b"\x87": lambda p: p._tuple(3),
        b"t": _push(lambda p: tuple(p._pop_mark())),
        b"]": _push(lambda p: []),
        b"l": _push(PickleReader._pop_mark),
        b"a": lambda p: p._append([p._pop()]),
        b"e": lambda p: p._append(p._pop_mark()),
        b"}": _push(lambda p: Dict()),
        b"d": _push(lambda p: p._dict_of(p._pop_mark())),
        b"s": lambda p: p._set_items([p._pop(), p._pop()][::-1]),
        b"u": lambda p: p._set_items(p._pop_mark()),
        b"\x8f": _push(lambda p: Set()),
        b"\x90": lambda p: p._add(p._pop_mark()),
        b"\x91": _push(lambda p: Set(p._pop_mark())),
        # names, calls, references
        b"c": _push(PickleReader._global_lines),
        b"\x93": PickleReader._stack_global,
        b"R": PickleReader._reduce,
        b"\x81": PickleReader._reduce,
        b"\x92": PickleReader._new_with_keywords,
        b"o": PickleReader._object,
        b"i": PickleReader._instance,
        b"b": PickleReader._build,
        b"\x82": PickleReader._extension,
        b"\x83": PickleReader._extension,
        b"\x84": PickleReader._extension,
        b"Q": PickleReader._persistent,
    }.items()
}
"""Opcode -> what to do. Left out, so refused: PERSID (torch never writes it) and protocol 5's out-of-band buffers."""
