"""Frames between the grader and a worker, and the plain values they carry.

A frame is 4 bytes of length, a line of JSON (strings such as the request's id, and the value), then the raw bytes of
its arrays, little-endian, in the order in which the value names them. Nothing is unpickled. The worker's side is in
hostile hands, so `unpack` trusts nothing: sizes, depth, keys, shapes and dtypes are checked before anything is built.

Values: None, bool, int (64 bits), float, str, list, tuple (arrives as a list), dict with str keys, numpy.ndarray and
torch.Tensor. Types are exact, since a subclass of float or Tensor can carry its own idea of equality.
"""

import json
import math
from json import dumps as _dumps  # bound now: student code may replace json.dumps

import numpy as np
import torch

MAX_FRAME = 64 << 20  # bytes
MAX_HEADER = 1 << 20  # bytes of the JSON line
MAX_DEPTH = 16
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("bool", "uint8", "int32", "int64", "float32", "float64")}


class ProtocolError(ValueError):
    """A frame or a value that is not what this module describes."""


def pack(head: dict[str, str], value, *, finite: bool) -> bytes:
    """The frame of `value`, refused with ProtocolError where `unpack` would refuse it."""
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
        head = json.loads(header.decode(), object_pairs_hook=_unique, parse_int=_int, parse_constant=float)
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


def _encode(value, depth: int, arrays: list[bytes], finite: bool):
    kind = type(value)
    if depth > MAX_DEPTH:
        raise ProtocolError(f"the value is nested more than {MAX_DEPTH} deep")
    if value is None or kind is bool or (kind is int and abs(value) < 2**63):
        return value
    if kind is str:
        return _text(value)
    if kind is float:
        return _number(value, finite)
    if kind in (list, tuple):
        return [_encode(item, depth + 1, arrays, finite) for item in value]
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": {_text(key): _encode(item, depth + 1, arrays, finite) for key, item in value.items()}}
    if kind is np.ndarray and value.dtype.name in DTYPES and value.nbytes <= MAX_FRAME:
        arrays.append(_number(value, finite).astype(DTYPES[value.dtype.name]).tobytes())
        return {"numpy": [value.dtype.name, list(value.shape)]}
    if kind is torch.Tensor and value.numel() * value.element_size() <= MAX_FRAME:
        name = str(value.dtype).removeprefix("torch.")
        if name in DTYPES and value.layout == torch.strided:
            arrays.append(_number(value.numpy(force=True), finite).astype(DTYPES[name]).tobytes())
            return {"torch": [name, list(value.shape)]}
    raise ProtocolError(f"{kind.__module__}.{kind.__qualname__} is not a plain value, or too large a one")


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
        if math.prod(max(d, 1) for d in shape) > MAX_FRAME or self.at + count * size > len(self.raw):
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
