"""Promise: a pickle is read as data. None of them, however malicious, imports, opens, calls or builds anything."""

from __future__ import annotations

import io
import pickle
import random
import struct
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcodec.errors import LimitExceeded, ModelCodecError, UnsafeInput
from modelcodec.formats.inert_pickle import ALLOWED, Dict, Global, PersistentId, PickleReader, Reduced, Set, read_pickle
from modelcodec.limits import LIMITS

PROTOCOLS = range(6)

# ---- an audit hook that sees every import, open, exec, system call of Python while it is armed (it cannot be removed) ---------------

_armed = False
_events: list[str] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _armed:
        _events.append(event)


sys.addaudithook(_hook)


@contextmanager
def no_side_effects() -> Iterator[None]:
    global _armed
    _events.clear()
    _armed = True
    try:
        yield
    finally:
        _armed = False
    assert not _events


def test_the_hook_sees_what_it_should() -> None:
    with pytest.raises(AssertionError), no_side_effects():
        pickle.loads(b"cbuiltins\nlen\n.")


# ---- malicious pickles -------------------------------------------------------------------------------------------------------------

CALLED = [
    ("os", "system"), ("posix", "system"), ("nt", "system"), ("os", "popen"), ("os", "execv"), ("os", "remove"), ("subprocess", "Popen"),
    ("subprocess", "check_output"), ("builtins", "eval"), ("builtins", "exec"), ("builtins", "compile"), ("builtins", "open"), ("builtins", "getattr"),
    ("builtins", "__import__"), ("builtins", "map"), ("__builtin__", "eval"), ("importlib", "import_module"), ("pickle", "loads"), ("_pickle", "loads"),
    ("marshal", "loads"), ("types", "FunctionType"), ("functools", "partial"), ("operator", "attrgetter"), ("operator", "methodcaller"),
    ("runpy", "run_path"), ("shutil", "rmtree"), ("socket", "socket"), ("webbrowser", "open"), ("urllib.request", "urlopen"),
    ("code", "InteractiveInterpreter"), ("pty", "spawn"), ("timeit", "timeit"), ("cProfile", "run"), ("pip._internal", "main"), ("ctypes", "CDLL"),
    ("torch", "load"), ("torch.storage", "_load_from_bytes"), ("torch.hub", "load"), ("torch.utils.collect_env", "run"), ("torch.jit", "load"),
    ("torch.serialization", "load"), ("numpy", "load"), ("numpy.core.multiarray", "_reconstruct"), ("numpy.testing._private.utils", "runstring"),
    ("joblib", "load"), ("argparse", "Namespace"), ("copyreg", "_reconstructor"), ("collections", "namedtuple"), ("collections", "abc.sys.modules"),
    ("torch.nn", "Linear"), ("torch.nn.modules.linear", "Linear"), ("torch", "os.system"), ("torch._utils", "os.system"), ("__torch__.evil", "Module"),
    ("torch._utils.os", "system"),
]  # fmt: skip
ARGUMENT = "touch modelcodec-was-here"


def _text(value: str, protocol: int) -> bytes:
    if protocol == 0:
        return b"V" + value.encode("raw-unicode-escape") + b"\n"
    data = value.encode()
    return b"\x8c" + bytes((len(data),)) + data if protocol >= 4 else b"X" + struct.pack("<I", len(data)) + data


def _start(protocol: int) -> bytes:
    return b"\x80" + bytes((protocol,)) if protocol >= 2 else b""


def _name(module: str, name: str, protocol: int) -> bytes:
    return _text(module, 4) + _text(name, 4) + b"\x93" if protocol >= 4 else f"c{module}\n{name}\n".encode()


def _malicious() -> dict[str, bytes]:
    """Every dangerous name called as each protocol does it, and every other way in which a pickle reaches a name."""
    attacks = {}
    for module, name in CALLED:
        for protocol in PROTOCOLS:
            call = _name(module, name, protocol) + b"(" + _text(ARGUMENT, protocol) + b"tR."
            attacks[f"{module}.{name} {protocol}"] = _start(protocol) + call
    system = b"cos\nsystem\n"
    argument = _text(ARGUMENT, 2)
    return attacks | {
        "instance": b"(" + argument + b"ios\nsystem\n.",
        "object": b"(" + system + argument + b"o.",
        "new": b"\x80\x02" + system + argument + b"\x85\x81.",
        "new with keywords": b"\x80\x04" + system + argument + b"\x85}\x92.",
        "only named": system + b".",
        "named and dropped": system + b"0N.",
        "in a dictionary": b"}" + argument + system + b"s.",
        "state": b"ccollections\nOrderedDict\n)R}" + argument + system + b"sb.",
        "reference": b"\x80\x02" + system + argument + b"\x85RQ.",
        "inside a storage": b"\x80\x02(X\x07\0\0\0storage" + system + b"tQ.",
        "after the memo": b"\x80\x04" + _text("os", 4) + b"\x94" + _text("system", 4) + b"\x94h\0h\1\x93" + argument + b"\x85R.",
        "name made of parts": b"\x80\x04" + _text("os.path", 4) + _text("os.system", 4) + b"\x93.",
        "name is a number": b"\x80\x04K\1K\2\x93.",
        "name is a list": b"\x80\x04]]\x93.",
        "allowed module, other name": b"ccollections\nOrderedDict.fromkeys\n.",
        "allowed name, other module": b"cevil\nOrderedDict\n.",
        "name with a space": b"ccollections \nOrderedDict\n.",
        "name in other case": b"cTorch\nFloatStorage\n.",
        "name as Cyrillic": "ccollеctions\nOrderedDict\n.".encode(),
        "extension 1": b"\x80\x02\x82\x01.",
        "extension 2": b"\x80\x02\x83\x01\x01.",
        "extension 4": b"\x80\x02\x84\x01\x01\0\0.",
        "call of text": b"\x80\x02X\x02\0\0\0os)R.",
        "call of a call": b"\x80\x02ccollections\nCounter\n)R)R.",
        "call of a dictionary": b"\x80\x02})R.",
        "object of nothing": b"(o.",
        "keywords of text": b"\x80\x04X\x02\0\0\0os)}\x92.",
        "second frame": b"\x80\x04\x95\x02\0\0\0\0\0\0\0N0" + _name("os", "system", 4) + argument + b"\x85R.",
        "long name": b"c" + b"a" * 100_000 + b"\nsystem\n.",
    }


@pytest.mark.parametrize("data", _malicious().values(), ids=_malicious().keys())
def test_malicious_pickles_are_refused_without_side_effects(data: bytes) -> None:
    with pytest.raises(UnsafeInput) as caught, no_side_effects():
        read_pickle(data)
    assert "trust" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


class _Attack:
    """What real attacks look like when made with pickle itself."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("function", [eval, exec, open, getattr, __import__, pickle.loads, time.sleep], ids=lambda f: f.__name__)
def test_attacks_hidden_in_a_state_dict_are_refused(function: object, protocol: int) -> None:
    data = pickle.dumps(OrderedDict(a=1, b=[{"deep": (_Attack(function, ARGUMENT),)}]), protocol)
    with pytest.raises(UnsafeInput), no_side_effects():
        read_pickle(data)


def test_allowed_names_are_not_touched_either() -> None:
    """A name on the list, called with nonsense, stays a description; torch is not even imported for it."""
    with no_side_effects():
        for module, name in sorted(ALLOWED):
            if name not in ("OrderedDict", "set", "frozenset"):
                found = read_pickle(f"c{module}\n{name}\n(VX\ntR.".encode())
                assert isinstance(found, Reduced)
                assert (found.callable, found.args) == (Global(module, name), ("X",))


def test_torchscript_classes_are_read_only_on_request() -> None:
    data = b"\x80\x02c__torch__.m\nModel\n)\x81}b."
    assert isinstance(PickleReader(data, script=True).read(), Reduced)
    with pytest.raises(UnsafeInput):
        PickleReader(data).read()
    with pytest.raises(UnsafeInput):
        PickleReader(b"c__torch__evil\nModel\n.", script=True).read()


# ---- honest pickles ----------------------------------------------------------------------------------------------------------------


def plain(value: object) -> object:
    """An inert result as Python would have built it, for the types of the test below."""
    match value:
        case Dict():
            return {plain(key): plain(item) for key, item in value.items}
        case Set():
            return frozenset(map(plain, value.items))
        case list():
            return [plain(item) for item in value]
        case tuple():
            return tuple(plain(item) for item in value)
        case Reduced(Global("_codecs", "encode"), (str() as text, "latin1")):
            return text.encode("latin-1")
        case Reduced(Global(_, "bytes"), ()):
            return b""
        case Reduced(Global(_, "bytearray"), args):
            return bytes(plain(args[0])) if args and isinstance(plain(args[0]), bytes) else str(args[0]).encode("latin-1") if args else b""
    return value


SCALARS = st.none() | st.booleans() | st.integers(-(2**400), 2**400) | st.floats(allow_nan=False) | st.text() | st.binary(max_size=300)
VALUES = st.recursive(
    SCALARS | st.frozensets(st.integers() | st.text(max_size=3), max_size=4),
    lambda inner: (
        st.lists(inner, max_size=5) | st.tuples(inner, inner) | st.tuples(inner) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=5)
    ),
    max_leaves=25,
)


@settings(max_examples=200, deadline=None)
@given(value=VALUES, protocol=st.sampled_from(PROTOCOLS))
def test_plain_data_is_read_as_pickle_would(value: object, protocol: int) -> None:
    assert plain(read_pickle(pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_kinds_of_numbers_and_shared_parts(protocol: int) -> None:
    shared = [1, 2]
    value = {"ints": [0, 255, 256, 65535, 65536, -1, 2**31, -(2**31), 2**63, -(2**800)], "floats": [0.5, -0.0, 1e300, float("inf")]}
    value |= {"true": True, "one": 1, "twice": (shared, shared)}
    found = read_pickle(pickle.dumps(value, protocol))
    assert plain(found) == value
    assert isinstance(found, Dict)
    pairs = dict(found.items)
    assert pairs["true"] is True
    assert type(pairs["one"]) is int
    assert pairs["twice"][0] is pairs["twice"][1]


def test_a_list_that_contains_itself() -> None:
    value: list[object] = []
    value.append(value)
    found = read_pickle(pickle.dumps(value))
    assert isinstance(found, list)
    assert found[0] is found


def test_ordered_dict_with_state_and_counter() -> None:
    value = OrderedDict(a=1)
    value._metadata = {"": 1}
    found = read_pickle(pickle.dumps([value, Counter("aab")], 2))
    assert isinstance(found, list)
    assert isinstance(found[0], Dict)
    assert found[0].items == [("a", 1)]
    assert plain(found[0].state) == {"_metadata": {"": 1}}
    assert found[1].callable == Global("collections", "Counter")


def test_ordered_dict_of_pairs_as_python_2_wrote_it() -> None:
    found = read_pickle(b"\x80\x02ccollections\nOrderedDict\nq\x00](]q\x01(U\x01aK\x01e]q\x02(U\x01bK\x02ee\x85R.")
    assert plain(found) == {"a": 1, "b": 2}


def test_keys_that_cannot_be_hashed() -> None:
    """A dictionary with a list as its key, which Python could not build, is only pairs here."""
    found = read_pickle(b"}](K\x01eK\x02s.")
    assert isinstance(found, Dict)
    assert found.items == [([1], 2)]


def test_persistent_ids_are_collected() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", "x", 1) if obj == "here" else None

    file = io.BytesIO()
    Pickler(file, 2).dump(["here", "there", "here"])
    reader = PickleReader(file.getvalue() + b"N.")
    assert reader.read()[1] == "there"
    assert [reference.value for reference in reader.persistent_ids] == [("storage", "x", 1)] * 2
    assert isinstance(reader.persistent_ids[0], PersistentId)
    assert reader.read() is None
    assert reader.position == len(file.getvalue()) + 2


# ---- damaged and greedy pickles ----------------------------------------------------------------------------------------------------


def _read_quietly(data: bytes) -> None:
    start = time.process_time()
    message = ""
    try:
        read_pickle(data)
    except ModelCodecError as error:
        message = str(error)
    assert time.process_time() - start < 2
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_mutated_pickles_raise_our_errors_only(protocol: int) -> None:
    rng = random.Random(protocol)
    value = OrderedDict(state={0: {"step": 1.0, "m": (1, 2, [3, "text", b"bytes"])}, 1: {}}, groups=[{"lr": 1e-3, "on": False, "set": {1, 2}}])
    good = pickle.dumps(value, protocol)
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            match rng.randrange(3):
                case 0:
                    data[rng.randrange(len(data))] = rng.randrange(256)
                case 1:
                    del data[rng.randrange(len(data)) :][:1]
                case _:
                    data.insert(rng.randrange(len(data) + 1), rng.choice(b"(0125RQbcdeghijlopqrstu}])\x80\x81\x85\x86\x87\x8a\x8b\x8f\x90\x91\x93\x94\x95."))
        _read_quietly(bytes(data))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60))
def test_random_bytes_raise_our_errors_only(data: bytes) -> None:
    _read_quietly(data)


@pytest.mark.parametrize("opcode", range(256))
def test_every_opcode_alone_and_after_little(opcode: int) -> None:
    for before in (b"", b"N", b"(", b"(N", b"]", b"}", b"NN", b"N(", b"](", b"}(N"):
        for after in (b"", b".", bytes(8) + b".", b"\xff" * 9, b"1\n.", b"\n\n."):
            _read_quietly(before + bytes((opcode,)) + after)


GREEDY = {
    "text of 4 GB": b"X\xff\xff\xff\xff",
    "bytes of 2^64": b"\x8e" + b"\xff" * 8,
    "integer of 2 GB": b"\x8b\xff\xff\xff\x7f",
    "integer of 10 MB": b"\x8b" + struct.pack("<I", 10**7) + bytes(10**7) + b".",
    "digits": b"I" + b"9" * 500_000 + b"\n.",
    "line without end": b"V" + b"x" * 3_000_000,
    "memo far away": b"Nr\xff\xff\xff\xff.",
    "memo of digits": b"Np" + b"9" * 200 + b"\n.",
    "frame of 2^64": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "deep lists": b"]" * 300_000 + b"a" * 299_999 + b".",
    "deep tuples": b")" + b"\x85" * 300_000 + b".",
    "deep marks": b"(" * 300_000 + b"t" * 300_000 + b".",
    "deep calls": b"ccollections\nCounter\nq\x00" + b")R0h\x00" * 50_000 + b".",
    "many references": b")" + b"2" * 300_000 + b".",
    "one list, many copies": b"(" + b"K\x00" * 3000 + b"lp0\n0" + b"ccollections\nOrderedDict\n(g0\ntR0" * 3000 + b"N.",
    "one list, many sets": b"(" + b"K\x00" * 3000 + b"lp0\n0" + b"cbuiltins\nset\n(g0\ntR0" * 3000 + b"N.",
}


@pytest.mark.parametrize("data", GREEDY.values(), ids=GREEDY.keys())
def test_greedy_pickles_cost_little(data: bytes) -> None:
    _read_quietly(data)


def test_steps_are_limited() -> None:
    with pytest.raises(LimitExceeded):
        read_pickle(b"N0" * 600 + b"N.", replace(LIMITS, pickle_operations=1000))


def test_copied_text_is_limited() -> None:
    with pytest.raises(LimitExceeded):
        read_pickle((b"X" + struct.pack("<I", 400) + b"a" * 400 + b"0") * 3 + b"N.", replace(LIMITS, header_bytes=1000))
