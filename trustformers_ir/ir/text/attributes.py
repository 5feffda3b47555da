"""Types and attribute values as text, derived from the type hints of the declarations.

:func:`codec` turns the hint of an attribute into a :class:`Codec`, which checks, prints and parses its values; a new op with attributes of the
kinds below, and a new layout class in ``ir.types.Layout``, need nothing here.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
import types
import typing
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.dims import Dim, SymExpr
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.data import Literal
from trustformers_ir.ir.text.dimtext import parse_dim_at
from trustformers_ir.ir.text.lexer import Lexer
from trustformers_ir.ir.text.literals import SplatBudget, literal_text, parse_literal
from trustformers_ir.ir.text.scalars import IDENTIFIER, float_text, parse_float, quote
from trustformers_ir.ir.types import ROW_MAJOR, Layout, TensorType

MAX_ELEMENT_TERMS = 4096  # terms of the number of elements of a type
MAX_RANK = 32
MAX_LIST = 4096  # entries of a list attribute


class Writer:
    """What printing keeps track of."""

    def __init__(self) -> None:
        self.splats = SplatBudget()


class Reader(Lexer):
    """A lexer that also knows the declared symbols, for reading types and attributes."""

    def __init__(self, text: str, symbols: Container[str] | None = None) -> None:
        super().__init__(text)
        self.symbols = symbols
        self.splats = SplatBudget()

    def dim(self) -> Dim:
        return parse_dim_at(self, self.symbols)

    def listed(self, opening: str, closing: str, item: Callable[[], Any], limit: int = MAX_LIST) -> list[Any]:
        """``[a, b, c]``: items between brackets, over several lines if need be, with an optional comma after the last."""
        self.expect(opening)
        self.skip_newlines()
        out: list[Any] = []
        while not self.at(closing):
            if len(out) == limit:
                self.fail(f"a list of more than {limit} entries", code=Code.TEXT_LIMIT)
            out.append(item())
            self.skip_newlines()
            if not self.at(closing):
                if not self.at(","):
                    self.fail(f"expected ',' or '{closing}', found {self.peek()}")
                self.take()
                self.skip_newlines()
        self.take()
        return out


# --- types and layouts -------------------------------------------------------------------------------------------------------------


def type_text(type: TensorType) -> str:
    """``f32[batch, 384]``, with ``{panels 48}`` after it when the layout is a packed one."""
    layout = "" if type.layout == ROW_MAJOR else layout_text(type.layout)
    return f"{type.dtype}[{', '.join(map(str, type.shape))}]{layout}"


def layout_text(layout: Any) -> str:
    """``{panels 48}``: the class in snake case, then its fields in order, without those at the end that have their defaults."""
    values = [(getattr(layout, f.name), f.default) for f in dataclasses.fields(layout)]
    while values and values[-1][0] == values[-1][1]:
        values.pop()
    fields = [_field_text(value) for value, _ in values]
    return "{" + " ".join([_snake(type(layout).__name__), *fields]) + "}"


def _field_text(value: Any) -> str:
    if isinstance(value, DType):
        return value.name
    if isinstance(value, enum.Enum):
        return str(value.value)
    return quote(value) if isinstance(value, str) else str(value)


def parse_type(reader: Reader) -> TensorType:
    token = reader.peek()
    if token.kind != "name":
        reader.fail(f"expected a type, found {token}", code=Code.BAD_TYPE)
    if token.text not in DType.__members__:
        reader.fail(f"{token} is not a dtype", code=Code.BAD_TYPE, help="one of " + " ".join(DType.__members__))
    reader.take()
    shape = reader.listed("[", "]", functools.partial(_parse_size, reader), MAX_RANK)
    terms = 1
    for d in shape:
        terms *= len(d.terms) if isinstance(d, SymExpr) else 1
    if terms > MAX_ELEMENT_TERMS:
        reader.fail(f"the number of elements has {terms} terms", token, Code.TEXT_LIMIT)
    layout: Layout = ROW_MAJOR
    if reader.at("{") and reader.peek2().kind == "name":
        layout = parse_layout(reader)
    if layout != ROW_MAJOR:
        try:
            layout.storage(tuple(shape))
        except (ValueError, TypeError) as error:
            reader.fail(f"the layout does not fit the shape: {error}", token, Code.BAD_TYPE)
    return TensorType(tuple(shape), DType[token.text], layout)


def _parse_size(reader: Reader) -> Dim:
    token = reader.peek()
    dim = reader.dim()
    if isinstance(dim, int) and dim < 0:
        reader.fail(f"a size is not negative: {dim}", token, Code.BAD_TYPE)
    return dim


def parse_layout(reader: Reader) -> Layout:
    reader.expect("{")
    token = reader.expect_kind("name", "a layout")
    kinds: dict[str, Any] = {_snake(c.__name__): c for c in typing.get_args(Layout)}
    if token.text not in kinds:
        reader.fail(f"{token} is not a layout", token, Code.BAD_TYPE, "one of " + " ".join(kinds))
    kind = kinds[token.text]
    hints = typing.get_type_hints(kind)
    values = []
    for f in dataclasses.fields(kind):
        if f.default is not dataclasses.MISSING and reader.at("}"):
            break
        values.append(codec(hints[f.name]).parse(reader))
    reader.expect("}")
    try:
        layout: Layout = kind(*values)
    except (ValueError, TypeError) as error:
        reader.fail(str(error), token, Code.BAD_TYPE)
    return layout


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


# --- attributes --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Codec:
    """How values of one kind of attribute are checked, printed and parsed. ``what`` names the kind in messages."""

    what: str
    accepts: Callable[[Any], bool]
    text: Callable[[Any, Writer], str]
    parse: Callable[[Reader], Any]


@functools.cache
def codec(hint: Any) -> Codec:
    """The codec of a type hint. ``TypeError`` for a hint that attributes may not have."""
    members = set(typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, types.UnionType) else {hint}
    if type(None) in members and len(members) > 1:
        members.discard(type(None))
        return _optional(codec(members.pop() if len(members) == 1 else typing.Union[tuple(members)]))  # noqa: UP007
    if members == {int, SymExpr}:
        return Codec("a dim", _is_dim, lambda v, w: str(v), Reader.dim)
    if members <= set(typing.get_args(Layout)):
        return Codec("a layout", lambda v: type(v) in members, lambda v, w: layout_text(v), parse_layout)
    if typing.get_origin(hint) is tuple:
        return _tuple(typing.get_args(hint))
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _record(hint)
    raise TypeError(f"{hint} is not a kind of attribute")


def _is_dim(value: Any) -> bool:
    return isinstance(value, (int, SymExpr)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _parse_bool(reader: Reader) -> bool:
    if not (reader.at("true") or reader.at("false")):
        reader.fail(f"expected true or false, found {reader.peek()}", code=Code.BAD_ATTRIBUTE)
    return reader.take().text == "true"


def _parse_int(reader: Reader) -> int:
    if reader.peek().kind != "number":
        reader.fail(f"expected an integer, found {reader.peek()}", code=Code.BAD_ATTRIBUTE)
    return reader.integer()


def _parse_str(reader: Reader) -> str:
    if reader.peek().kind != "string":
        reader.fail(f"expected a string, found {reader.peek()}", code=Code.BAD_ATTRIBUTE)
    return reader.string()


def _parse_dtype(reader: Reader) -> DType:
    token = reader.expect_kind("name", "a dtype")
    if token.text not in DType.__members__:
        reader.fail(f"{token} is not a dtype", token, Code.BAD_ATTRIBUTE, "one of " + " ".join(DType.__members__))
    return DType[token.text]


_SIMPLE: dict[Any, Codec] = {
    bool: Codec("a bool", lambda v: isinstance(v, bool), lambda v, w: str(v).lower(), _parse_bool),
    int: Codec("an integer", lambda v: isinstance(v, int) and not isinstance(v, bool), lambda v, w: str(v), _parse_int),
    float: Codec("a number", _is_number, lambda v, w: float_text(float(v)), parse_float),
    str: Codec("a string", lambda v: isinstance(v, str), lambda v, w: quote(v), _parse_str),
    DType: Codec("a dtype", lambda v: isinstance(v, DType), lambda v, w: v.name, _parse_dtype),
    Literal: Codec(
        "a literal",
        lambda v: isinstance(v, Literal),
        lambda v, w: literal_text(v, w.splats),
        lambda r: parse_literal(r, r.splats),
    ),
}


def _optional(inner: Codec) -> Codec:
    def parse(reader: Reader) -> Any:
        return None if reader.accept("none") else inner.parse(reader)

    return Codec(
        f"{inner.what} or none",
        lambda v: v is None or inner.accepts(v),
        lambda v, w: "none" if v is None else inner.text(v, w),
        parse,
    )


def _tuple(args: tuple[Any, ...]) -> Codec:
    repeated = len(args) == 2 and args[1] is Ellipsis
    inner = [codec(args[0])] if repeated else [codec(a) for a in args]

    def accepts(value: Any) -> bool:
        if not isinstance(value, tuple) or not (repeated or len(value) == len(inner)):
            return False
        return all((inner[0] if repeated else inner[i]).accepts(v) for i, v in enumerate(value))

    def text(value: Any, writer: Writer) -> str:
        return "[" + ", ".join((inner[0] if repeated else inner[i]).text(v, writer) for i, v in enumerate(value)) + "]"

    def parse(reader: Reader) -> tuple[Any, ...]:
        start = reader.peek()
        if not reader.at("["):
            reader.fail(f"expected a list, found {start}", code=Code.BAD_ATTRIBUTE)
        position = iter(range(MAX_LIST))
        if repeated:
            return tuple(reader.listed("[", "]", lambda: inner[0].parse(reader)))
        items = reader.listed("[", "]", lambda: inner[min(next(position), len(inner) - 1)].parse(reader))
        if len(items) != len(inner):
            reader.fail(f"expected {len(inner)} entries, found {len(items)}", start, Code.BAD_ATTRIBUTE)
        return tuple(items)

    return Codec(f"a list of {inner[0].what}" if repeated else f"a list of {len(inner)} entries", accepts, text, parse)


def _enum(kind: type[enum.Enum]) -> Codec:
    by_text = {str(row.value): row for row in kind}

    def text(value: Any, writer: Writer) -> str:
        shown = str(value.value)
        return shown if IDENTIFIER.match(shown) else quote(shown)

    def parse(reader: Reader) -> enum.Enum:
        token = reader.peek()
        if token.kind not in ("name", "string") or token.text not in by_text:
            reader.fail(f"expected one of {', '.join(by_text)}; found {token}", code=Code.BAD_ATTRIBUTE)
        reader.take()
        return by_text[token.text]

    return Codec(f"one of {', '.join(by_text)}", lambda v: isinstance(v, kind), text, parse)


def _record(kind: type) -> Codec:
    """Any other frozen dataclass: ``{field = value, …}`` with every field."""
    hints = typing.get_type_hints(kind)
    fields = {f.name: codec(hints[f.name]) for f in dataclasses.fields(kind)}

    def text(value: Any, writer: Writer) -> str:
        return "{" + ", ".join(f"{name} = {inner.text(getattr(value, name), writer)}" for name, inner in fields.items()) + "}"

    def parse(reader: Reader) -> Any:
        start = reader.peek()
        names = iter(fields.items())

        def entry() -> Any:
            name, inner = next(names, ("}", None))
            reader.expect(name)
            reader.expect("=")
            assert inner is not None
            return inner.parse(reader)

        values = reader.listed("{", "}", entry)
        try:
            return kind(*values)
        except (ValueError, TypeError) as error:
            reader.fail(str(error), start, Code.BAD_ATTRIBUTE)

    def accepts(value: Any) -> bool:
        return isinstance(value, kind) and all(inner.accepts(getattr(value, name)) for name, inner in fields.items())

    return Codec(f"a {_snake(kind.__name__)}", accepts, text, parse)
