"""Frames between the grader and a worker, and the plain values they carry.

A frame is 4 bytes of length, a line of JSON (strings such as the request's id, and the value), then the raw bytes of
its arrays, little-endian, in the order in which the value names them. Nothing is unpickled. The worker's side is in
hostile hands, so `unpack` trusts nothing: sizes, depth, keys, shapes and dtypes are checked before anything is built.

What arrives is None, bool, int (64 bits), float, str, list, dict with str keys, numpy.ndarray or torch.Tensor, of
exactly these types: a subclass of float or Tensor can carry its own idea of equality. What is sent may be what people's
code returns, and becomes one of these on the way: numpy's scalars, tuples, subclasses (a Parameter, an OrderedDict, a
namedtuple) and numbers of 8 or 16 bits.
"""

import json
import math
from json import dumps as _dumps  # bound now: student code may replace json.dumps

import numpy as np
import torch

MAX_FRAME = 64 << 20  # bytes
MAX_HEADER = 1 << 20  # bytes of the JSON line
MAX_DEPTH = 16
DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("bool", "uint8", "int32", "int64", "float32", "float64")
}
# sent as another dtype
WIDER = {"int8": "int32", "int16": "int32", "uint16": "int32", "uint32": "int64"}
WIDER |= {"float16": "float32", "bfloat16": "float32"}


class ProtocolError(ValueError):
    """A frame or a value that is not what this module describes."""


def pack(head: dict[str, str], value, *, finite: bool) -> bytes:
    """The frame of `value`, refused with ProtocolError where `unpack` would refuse it.

    Args:
        head: short texts by name.
        value: what is sent.
        finite: whether NaN and infinity are refused.
    """
    arrays: list[bytes] = []
    header = _dumps(head | {"value": _encode(value, 0, arrays, finite)}).encode()
    size = len(header) + 1 + sum(map(len, arrays))
    if len(header) > MAX_HEADER or size > MAX_FRAME:
        raise ProtocolError(f"the value takes {size} bytes, more than can be sent")
    return b"".join([size.to_bytes(4, "big"), header, b"\n", *arrays])


def unpack(body: bytes, *, finite: bool) -> tuple[dict[str, str], object]:
    """(head, value) of a frame without its length; `finite` refuses infinities. NaN is always refused."""
    header, newline, raw = body.partition(b"\n")
    if not newline or len(header) > MAX_HEADER:
        raise ProtocolError("the frame has no header, or too long a one")
    try:
        head = json.loads(
            header.decode(), object_pairs_hook=_unique, parse_int=_int, parse_constant=float
        )
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the header is not the JSON expected: {error}") from error
    if type(head) is not dict or "value" not in head:
        raise ProtocolError("the header is not an object that holds a value")
    arrays = _Arrays(raw, finite)
    value = _decode(head.pop("value"), 0, arrays)
    if arrays.at != len(raw):
        raise ProtocolError("bytes are left over")
    if any(type(entry) is not str for entry in head.values()):
        raise ProtocolError("an entry of the header is not a string")
    return head, value


def carried(value, *, finite: bool):
    """What the other side gets of a value, or ProtocolError where it can't be sent."""
    return unpack(pack({}, value, finite=finite)[4:], finite=finite)[1]


def _encode(value, depth: int, arrays: list[bytes], finite: bool):  # noqa: C901  (a table of kinds, one a line)
    if depth > MAX_DEPTH:
        raise ProtocolError(f"the value is nested more than {MAX_DEPTH} deep")
    # by the base that it has: its own methods run here, on the sender's side, and never where it arrives
    match value:
        case None:
            return None
        case bool() | np.bool_():
            return bool(value)
        case int() | np.integer():
            return _whole(int(value))
        case float() | np.floating():
            return _number(float(value), finite)
        case str():
            return _text(str.__str__(value))  # an enum's own says its name
        case list() | tuple():
            return [_encode(item, depth + 1, arrays, finite) for item in value]
        case dict():
            return {
                "dict": {
                    _key(key): _encode(item, depth + 1, arrays, finite)
                    for key, item in value.items()
                }
            }
        case np.ndarray():
            return {"numpy": _array(value, value.dtype.name, value.nbytes, arrays, finite)}
        case torch.Tensor():
            return {"torch": _tensor(value, arrays, finite)}
    raise ProtocolError(
        f"{_name(value)} is none of numbers, text, lists, dicts, tensors and arrays"
    )


def _tensor(value: torch.Tensor, arrays: list[bytes], finite: bool) -> list:
    """As `_array`, of a tensor."""
    if value.layout != torch.strided or value.is_meta:
        raise ProtocolError(f"{_name(value)} is sparse or holds no values")
    size = value.numel() * value.element_size()
    return _array(value, str(value.dtype).removeprefix("torch."), size, arrays, finite)


def _array(value, name: str, size: int, arrays: list[bytes], finite: bool) -> list:
    """Append the bytes of an array or tensor, and return its dtype and shape."""
    sent = WIDER.get(name, name)
    if sent not in DTYPES:
        raise ProtocolError(f"{_name(value)} of dtype {name} is none that can be sent")
    if size > MAX_FRAME:
        raise ProtocolError(f"{_name(value)} takes {size} bytes, more than can be sent")
    if isinstance(value, torch.Tensor):
        value = value.detach().as_subclass(torch.Tensor).to(getattr(torch, sent)).numpy(force=True)
    array = np.asarray(value)
    arrays.append(_number(array, finite).astype(DTYPES[sent]).tobytes())
    return [sent, list(array.shape)]


def _decode(node, depth: int, arrays: "_Arrays"):
    if depth > MAX_DEPTH:
        raise ProtocolError(f"the value is nested more than {MAX_DEPTH} deep")
    if type(node) is list:
        return [_decode(item, depth + 1, arrays) for item in node]
    if type(node) is dict:
        if len(node) != 1:
            raise ProtocolError("an object with other than one key")
        ((kind, content),) = node.items()
        if kind == "dict" and type(content) is dict:
            return {_text(key): _decode(item, depth + 1, arrays) for key, item in content.items()}
        if kind in ("numpy", "torch") and type(content) is list and len(content) == 2:
            array = arrays.take(*content)
            return torch.from_numpy(array) if kind == "torch" else array
        raise ProtocolError("an object of no known kind")
    if type(node) is float:
        return _number(node, arrays.finite)
    return _text(node) if type(node) is str else node


class _Arrays:
    """Takes arrays one after the other from the raw bytes."""

    def __init__(self, raw: bytes, finite: bool):
        self.raw, self.finite, self.at = raw, finite, 0

    def take(self, name, shape) -> np.ndarray:
        if type(name) is not str or name not in DTYPES or type(shape) is not list or len(shape) > 8:
            raise ProtocolError("an array of unknown dtype or shape")
        if any(type(d) is not int or not 0 <= d <= MAX_FRAME for d in shape):
            raise ProtocolError("an array of impossible shape")
        count, size = math.prod(shape), DTYPES[name].itemsize
        if math.prod(max(d, 1) for d in shape) > MAX_FRAME or self.at + count * size > len(
            self.raw
        ):
            raise ProtocolError("an array larger than its bytes")
        array = np.frombuffer(self.raw, DTYPES[name], count, self.at)
        self.at += count * size
        if name == "bool" and array.view(np.uint8).max(initial=0) > 1:
            raise ProtocolError("a bool that is neither 0 nor 1")
        return _number(array, self.finite).astype(name).reshape(shape)


def _unique(pairs):
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _int(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError("an int of more than 64 bits")
    return int(digits)


def _whole(number: int) -> int:
    if abs(number) >= 2**63:
        raise ProtocolError("a whole number of more than 64 bits")
    return number


def _key(key) -> str:
    if not isinstance(key, str):
        raise ProtocolError(f"a dict's keys must be text, got {_name(key)}")
    return _text(str.__str__(key))


def _name(value) -> str:
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _number(value, finite: bool):
    """A float or an array, without NaN, and where `finite` without infinities."""
    if np.isnan(value).any() or (finite and np.isinf(value).any()):
        raise ProtocolError("the value holds NaN or an infinity")
    return value


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ProtocolError("a string with lone surrogates") from error
    return text
