"""Dataclasses as canonical JSON and back: an object per dataclass with a key per field, a list per tuple, a number or the text of an expression per
dim. What comes back is of the types that the fields announce; ``Broken`` tells what is not. Used by ``manifest.py`` and ``gpu/code.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from trustformers_ir.ir.dims import Dim, SymExpr, parse_dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.strict_json import no_key_twice
from trustformers_ir.ir.types import Panels, TensorType

MAX_DIM_TEXT = 1 << 16
MAX_RANK = 32
MAX_PANEL = 1 << 16
MAX_DEPTH = 64

_NONE = type(None)


class Broken(Exception):
    """A rule does not hold. ``offset`` counts bytes of the text where the place is known."""

    def __init__(self, rule: str, message: str, offset: int = 0) -> None:
        super().__init__(f"{rule}: {message}")
        self.message = message
        self.offset = offset


def parsed(data: bytes) -> object:
    """JSON, strictly: no key twice, no floats, no numbers beyond 64 bits."""

    once = no_key_twice(lambda key: Broken("M1", f"the key {shown(key)} occurs twice in an object"))

    def integer(text: str) -> int:
        if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 63:
            fail("M1", f"the number {text[:24]}… has more than 64 bits")
        return int(text)

    def refused(text: str) -> NoReturn:
        fail("M1", f"{text[:24]} is no whole number")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_int=integer, parse_float=refused, parse_constant=refused)
    except UnicodeDecodeError as error:
        raise Broken("M1", "it is not UTF-8", error.start) from None
    except json.JSONDecodeError as error:
        raise Broken("M1", f"it is not JSON: {error.msg}", len(data.decode("utf-8")[: error.pos].encode())) from None
    except RecursionError:
        raise Broken("M1", "it is nested too deeply") from None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def canonical(document: object) -> bytes:
    """The bytes of a document of plain data: equal documents have equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def encoded(value: Any, hint: Any) -> object:
    """``value``, an instance of ``hint``, as plain data."""
    if hint == Dim:
        return value if isinstance(value, int) else str(value)
    if hint is TensorType:
        out: dict[str, object] = {"dtype": value.dtype.name, "shape": [encoded(d, Dim) for d in value.shape]}
        if isinstance(value.layout, Panels):
            out["panels"] = value.layout.width
            if value.layout.depth > 1:
                out["depth"] = value.layout.depth
        return out
    if dataclasses.is_dataclass(hint):
        return {name: encoded(getattr(value, name), h) for name, h in _hints(typing.cast(type, hint)).items()}
    if typing.get_origin(hint) in (types.UnionType, typing.Union) and _NONE in hint.__args__:
        return None if value is None else encoded(value, next(a for a in hint.__args__ if a is not _NONE))
    if typing.get_origin(hint) is tuple:
        return [encoded(v, h) for v, h in zip(value, _items(hint, len(value)), strict=True)]
    return dict(value) if isinstance(value, Mapping) else value


def decoded(value: object, hint: Any, path: str) -> Any:
    """``value`` as an instance of ``hint``; every type that occurs in a manifest is handled, and no other."""
    return _decoder(hint)(value, path)


@functools.cache
def _decoder(hint: Any) -> Callable[[object, str], Any]:
    """What makes an instance of ``hint`` of a value at a path. What can be known of a type is found out once: a manifest has thousands of values."""
    if hint == Dim:
        return _dim
    if hint is TensorType:
        return _tensor_type
    if dataclasses.is_dataclass(hint):
        return _dataclass_decoder(typing.cast(Any, hint))
    origin = typing.get_origin(hint)
    if origin is tuple:
        return _list_decoder(hint)
    if origin in (types.UnionType, typing.Union) and _NONE in hint.__args__:
        (inner,) = (_decoder(a) for a in hint.__args__ if a is not _NONE)
        return lambda value, path: None if value is None else inner(value, path)
    if origin is not None and issubclass(origin, Mapping):
        return _texts_by_name
    if hint is str:
        return text_of
    assert hint is int, f"the manifest has a field of a type that is not handled: {hint}"
    return _whole_number


def _dataclass_decoder(cls: Callable[..., Any]) -> Callable[[object, str], Any]:
    decoders = [(name, f".{name}", _decoder(h)) for name, h in _hints(typing.cast(type, cls)).items()]
    expected = {name for name, _, _ in decoders}

    def decode(value: object, path: str) -> Any:
        found = fields_of(value, expected, path)
        values = {name: decoder(found[name], path + place) for name, place, decoder in decoders}
        try:
            return cls(**values)
        except ValueError as error:
            fail("M2", f"{path}: {error}")

    return decode


def _list_decoder(hint: Any) -> Callable[[object, str], tuple[Any, ...]]:
    """Of a list that is a tuple: of any length, or with a type for each place."""
    length = None if hint.__args__[-1] is Ellipsis else len(hint.__args__)
    decoders = [_decoder(a) for a in hint.__args__[:length] if a is not Ellipsis]

    def decode(value: object, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            fail("M1", f"{path} is no list")
        if length is None:
            (of_all,) = decoders
            return tuple([of_all(v, f"{path}[{i}]") for i, v in enumerate(value)])
        if len(value) != length:
            fail("M1", f"{path} has {len(value)} elements, not {length}")
        return tuple([decoder(v, f"{path}[{i}]") for i, (v, decoder) in enumerate(zip(value, decoders, strict=True))])

    return decode


def _texts_by_name(value: object, path: str) -> dict[str, str]:
    if not isinstance(value, dict):
        fail("M1", f"{path} is no object")
    return {text_of(k, f"a key of {path}"): text_of(v, f"{path}[{shown(k)}]") for k, v in value.items()}


def _whole_number(value: object, path: str) -> int:
    if type(value) is not int:
        fail("M1", f"{path} is no whole number")
    return value


def _items(hint: Any, count: int) -> Sequence[Any]:
    """The hint of each element of a tuple."""
    return [hint.__args__[0]] * count if hint.__args__[-1] is Ellipsis else hint.__args__


def fields_of(value: object, expected: set[str], path: str) -> dict[str, object]:
    """An object of exactly the expected keys."""
    if not isinstance(value, dict):
        fail("M1", f"{path} is no object")
    if value.keys() == expected:
        return value
    for key in sorted(expected - value.keys()):
        fail("M1", f"{path} has no '{key}'")
    for key in sorted(value.keys() - expected):
        fail("M1", f"{path} has a field that does not belong there: {shown(key)}")
    return value


def text_of(value: object, path: str) -> str:
    """A text that UTF-8 can hold."""
    if not isinstance(value, str):
        fail("M1", f"{path} is no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        fail("M1", f"{path} holds half of a surrogate pair")
    return value


@functools.lru_cache(maxsize=128)
def _expression(text: str) -> Dim:
    """A manifest repeats few texts many times: those of every layer are the same."""
    return parse_dim(text, MAX_DIM_TEXT)


def _dim(value: object, path: str) -> Dim:
    if type(value) is int:
        if value < 0:
            fail("M1", f"{path} is negative: {value}")
        return value
    text = text_of(value, path)
    try:
        dim = _expression(text)
    except ValueError as error:
        fail("M1", f"{path} is no dim: {str(error)[:200]}")
    if not isinstance(dim, SymExpr):
        fail("M1", f"{path} is a number written as text: {shown(text)}")
    return dim


def _tensor_type(value: object, path: str) -> TensorType:
    keys = {"dtype", "shape"}
    if isinstance(value, dict) and "panels" in value:
        keys |= {"panels"} | ({"depth"} if "depth" in value else set())
    found = fields_of(value, keys, path)
    name, shape = text_of(found["dtype"], f"{path}.dtype"), found["shape"]
    if name not in DType.__members__:
        fail("M1", f"{path}.dtype is no dtype: {shown(name)}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        fail("M1", f"{path}.shape is no list of at most {MAX_RANK} dims")
    dims = tuple(_dim(d, f"{path}.shape[{i}]") for i, d in enumerate(shape))
    if "panels" not in found:
        return TensorType(dims, DType[name])
    width = found["panels"]
    if type(width) is not int or not 1 <= width <= MAX_PANEL or len(dims) < 2:
        fail("M1", f"{path}.panels is no width of panels of a matrix")
    if "depth" not in found:
        return TensorType(dims, DType[name], Panels(width))
    depth = found["depth"]
    if type(depth) is not int or not 2 <= depth <= MAX_DEPTH:
        fail("M1", f"{path}.depth is no depth of panels")
    return TensorType(dims, DType[name], Panels(width, depth))


def shown(text: str) -> str:
    """A text of a file as it may stand in a message."""
    return repr(text if len(text) <= 60 else text[:60] + "…")


def fail(rule: str, message: str) -> NoReturn:
    """Raises ``Broken``."""
    raise Broken(rule, message)
