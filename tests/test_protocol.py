"""What travels between grader and worker arrives exactly, and nothing else arrives at all."""

import collections
import enum
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grader.protocol import MAX_DEPTH, MAX_FRAME, MAX_HEADER, ProtocolError, carried, pack, unpack

DTYPES = ("bool", "uint8", "int32", "int64", "float32", "float64")
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def travel(value, *, finite: bool = True):
    frame = pack({"id": "a"}, value, finite=finite)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    head, arrived = unpack(frame[4:], finite=finite)
    assert head == {"id": "a"}
    return arrived


def body(value, raw: bytes = b"") -> bytes:
    """A frame as a forger would write it."""
    return json.dumps({"id": "a", "value": value}).encode() + b"\n" + raw


@given(PLAIN)
def test_plain_values_arrive_with_their_types(value):
    assert repr(travel(value)) == repr(value)  # repr tells 1 from True and from 1.0, and −0.0 from 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_arrays_keep_kind_dtype_shape_and_bits(dtype, shape):
    array = np.asarray(np.random.default_rng(0).integers(-9, 9, size=shape) / 7).astype(dtype)
    tensor = torch.from_numpy(np.array(array))
    there, here = travel({"t": [tensor, tensor.clone()], "a": array}), {"t": tensor, "a": array}
    assert type(there["a"]) is np.ndarray
    assert there["a"].dtype == array.dtype
    assert there["a"].shape == shape
    assert there["a"].tobytes() == here["a"].tobytes()
    for arrived in there["t"]:
        assert type(arrived) is torch.Tensor
        assert arrived.dtype == tensor.dtype
        assert torch.equal(arrived, tensor)
        arrived.add_(1) if dtype != "bool" else arrived.logical_not_()  # it is memory of its own, to be written to


def test_views_gradients_and_byte_order_do_not_matter():
    tensor = torch.arange(6.0).reshape(2, 3).t().requires_grad_()
    assert torch.equal(travel(tensor), tensor.detach())
    assert travel(np.arange(3, dtype=">i8")).tolist() == [0, 1, 2]
    assert travel((1, (2, 3))) == [1, [2, 3]]


def test_infinity_travels_in_arguments_and_not_in_answers():
    for value in (math.inf, -math.inf, torch.tensor([math.inf]), np.array([-math.inf], np.float32)):
        assert repr(travel(value, finite=False)) == repr(value)
        with pytest.raises(ProtocolError, match="inf"):
            travel(value)
        with pytest.raises(ProtocolError, match="inf"):  # nor when the sender does not mind
            unpack(pack({"id": "a"}, value, finite=False)[4:], finite=True)


class Always:
    def __eq__(self, other):
        return True

    __hash__ = None


class Float(Always, float):
    pass


class Tensor(torch.Tensor):
    pass


class Members(enum.IntEnum):
    ONE = 1


class Names(str, enum.Enum):
    A = "a"


Pair = collections.namedtuple("Pair", "low high")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Float(1.5), 1.5),
        (type("Int", (int,), {})(7), 7),
        (Members.ONE, 1),
        (type("Str", (str,), {})("a"), "a"),
        (Names.A, "a"),
        (type("List", (list,), {})([1]), [1]),
        (Pair(1.5, 2.5), [1.5, 2.5]),
        (torch.Size([2, 3]), [2, 3]),
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (collections.defaultdict(int, a=1), {"a": 1}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        ({Names.A: 1, np.str_("b"): 2}, {"a": 1, "b": 2}),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        *[(np.dtype(name).type(7), 7) for name in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")],
        *[(np.dtype(name).type(0.5), 0.5) for name in ("f2", "f4", "f8", "longdouble")],
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_people_return_arrives_as_the_plain_value_it_is(value, plain):
    arrived = travel({"here": [value]})["here"][0]
    assert repr(arrived) == repr(plain)  # of exactly that type, in that order
    assert repr(carried(value, finite=True)) == repr(plain)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (torch.nn.Parameter(torch.ones(2)), torch.ones(2)),
        (torch.ones(2).as_subclass(Tensor), torch.ones(2)),
        (torch.tensor([-3, 4], dtype=torch.int8), torch.tensor([-3, 4], dtype=torch.int32)),
        (torch.tensor([-3, 4], dtype=torch.int16), torch.tensor([-3, 4], dtype=torch.int32)),
        (torch.tensor([0.5, -2.0], dtype=torch.float16), torch.tensor([0.5, -2.0])),
        (torch.tensor([0.5, -2.0], dtype=torch.bfloat16, requires_grad=True), torch.tensor([0.5, -2.0])),
        (np.array([[1, -2]], np.int8), np.array([[1, -2]], np.int32)),
        (np.array([2**32 - 1], np.uint32), np.array([2**32 - 1], np.int64)),
        (np.array([0.5], np.float16), np.array([0.5], np.float32)),
        (np.ones(2).view(type("Array", (np.ndarray,), {})), np.ones(2)),
    ],
    ids=lambda value: f"{type(value).__name__} {value.dtype}",
)
def test_arrays_that_people_return_arrive_as_plain_ones(value, plain):
    arrived = travel(value)
    assert type(arrived) is type(plain)
    assert arrived.dtype == plain.dtype
    assert arrived.tolist() == plain.tolist()
    assert arrived.shape == plain.shape


CYCLE: list = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "value",
    [
        np.float64("nan"),
        np.float16("nan"),
        Float("nan"),
        np.uint64(2**63),
        np.complex128(1),
        np.datetime64("2026-01-01"),
        np.void(b"a"),
        torch.tensor([math.nan], dtype=torch.bfloat16),
        np.array([None]),
        np.array(["a"]),
        np.array([1], np.uint64),
        np.ones(2, np.complex128),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta").to(torch.float16),
        torch.ones(2, device="meta"),
        torch.zeros(1).expand(1 << 40),
        np.broadcast_to(np.zeros(1), 1 << 40),
        Always(),
        {1: 2},
        {None: 1},
        {1, 2},
        range(3),
        (number for number in (1, 2)),
        {}.keys(),
        b"bytes",
        2**63,
        1j,
        math.nan,
        torch.tensor([math.nan]),
        "\ud800",
        {"\ud800": 1},
        CYCLE,
        "a" * (MAX_HEADER + 1),
        np.zeros(MAX_FRAME, np.uint8),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_values_are_not_sent(value):
    with pytest.raises(ProtocolError):
        pack({"id": "a"}, [value], finite=False)


def nested(depth: int):
    return [nested(depth - 1)] if depth else 0


def test_depth():
    assert travel(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    for build in (
        lambda: pack({}, nested(MAX_DEPTH + 1), finite=True),
        lambda: unpack(body(nested(MAX_DEPTH + 1)), finite=True),
    ):
        with pytest.raises(ProtocolError, match="deep"):
            build()


F8 = np.array([1.5]).tobytes()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\n",
        body(1)[:-1],  # no newline
        b"null\n",
        b"[]\n",
        b"{}\n",
        b'{"value": 1, "value": 1}\n',
        b'{"value": {"dict": {"a": 1, "a": 2}}}\n',
        b'{"id": 1, "value": 1}\n',
        b'{"value": NaN}\n',
        b'{"value": Infinity}\n',
        b'{"value": 1e999}\n',
        b'{"value": 9223372036854775808}\n',
        b'{"value": ' + b"9" * 100_000 + b"}\n",
        b'{"value": ' + b"[" * 500_000 + b"\n",
        b'{"value": "\\ud800"}\n',
        b'{"value": "\xff"}\n',
        '{"value": 1}\n'.encode("utf-16"),
        b" " * MAX_HEADER + b'{"value": 1}\n',
        pickle.dumps({"value": 1}),
        body({}),
        body({"a": 1, "b": 2}),
        body({"object": 1}),
        body({"dict": [1]}),
        body({"numpy": ["float64"]}),
        body({"numpy": ["object", [1]]}, F8),
        body({"numpy": [["float64"], [1]]}, F8),
        body({"numpy": ["float64", 1]}, F8),
        body({"numpy": ["float64", [2]]}, F8),
        body({"numpy": ["float64", []]}, F8 + F8),
        body({"numpy": ["float64", [-1]]}, F8),
        body({"numpy": ["float64", [True]]}, F8),
        body({"numpy": ["float64", [1.0]]}, F8),
        body({"numpy": ["float64", [1] * 9]}, F8),
        body({"numpy": ["float64", [0, 2**62, 2**62]]}),
        body({"numpy": ["float64", [0, 2**25, 2**25, 2**25]]}),
        body({"numpy": ["bool", [1]]}, b"\2"),
        body({"torch": ["float64", [1]]}, np.array([math.nan]).tobytes()),
        body({"torch": ["float32", [1]]}, np.array([math.inf], np.float32).tobytes()),
        body(1, b"left over"),
    ],
    ids=lambda frame: frame[:40].decode(errors="replace"),
)
def test_forged_frames_are_refused(frame):
    with pytest.raises(ProtocolError):
        unpack(frame, finite=True)


@given(st.binary(max_size=60), st.binary(max_size=40))
def test_no_bytes_raise_anything_but_a_protocol_error(header, raw):
    for frame in (header + b"\n" + raw, b'{"value": ' + header + b"}\n" + raw):
        try:
            said = len(unpack(frame, finite=True))
        except ProtocolError as error:
            said = len(str(error))
        assert said  # a header and a value, or a sentence
