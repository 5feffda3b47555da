"""The manifest as canonical JSON and back. What comes back has been checked against the numbered rules below, and nothing else is trusted.

The JSON mirrors the dataclasses of ``ir/abi.py``: an object per dataclass with a key per field, a list per tuple, a number or the text of an
expression per dim. Canonical means sorted keys, no spaces, UTF-8: equal manifests have equal bytes. ``decode`` builds no object that the
dataclasses do not announce.

A file may hold code for several targets: a :class:`Variant` per target, best first, each with a manifest of its own. They compute the same
functions of the same inputs (M9) and share what weights they can (M6).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from trustformers_ir.ir.abi import ALIGNMENT, QUANTIZATION_KEY, WEIGHT_ALIGNMENT, Entry, Manifest, Port, StoredWeight
from trustformers_ir.ir.dims import RESERVED, SYMBOL_NAME, Dim, SymExpr, parse_dim, symbols_of
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.strict_json import no_key_twice
from trustformers_ir.ir.types import ROW_MAJOR, Panels, TensorType

RULES = {
    "M1": "the manifest is JSON in UTF-8: objects of exactly the fields of ir/abi.py, each key once, each value of its field's type",
    "M2": "dim symbols are identifiers, declared once, with facts that some number satisfies",
    "M3": "there is an entry; names of entries, of the inputs and the outputs of an entry, and of weights are printable and occur once",
    "M4": "the symbol of an entry is an identifier that begins with tfir_entry_",
    "M5": "dims mention declared symbols; those of outputs and sizes mention only symbols of the inputs, or such that have one value",
    "M6": "weights are static and have the bytes of their type; those of all variants together begin at pages, in order, without overlap, without "
    "an empty page between them; one name is one weight",
    "M7": "every weight has a digest, 64 hexadecimal digits",
    "M8": "the triple, the CPU and the features of the target are single words; the targets of a file have different names",
    "M9": "variants have the same name, compiler, calling convention, dim symbols, entries, inputs and outputs; the first alone has metadata",
    "M10": "graphs and codes follow each other at multiples of 64 and fill their section; variants may share them",
}
MAX_VARIANTS = 64
MAX_DIM_TEXT = 1 << 16
MAX_RANK = 32
MAX_PANEL = 1 << 16
MAX_DEPTH = 64

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,1000}\Z")
_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,100}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_NONE = type(None)


class Broken(Exception):
    """A rule does not hold. ``offset`` counts bytes of the manifest where the place is known."""

    def __init__(self, rule: str, message: str, offset: int = 0) -> None:
        super().__init__(f"{rule}: {message}")
        self.offset = offset


@dataclass(frozen=True)
class Span:
    """A part of a section, in bytes from its beginning."""

    offset: int
    length: int


@dataclass(frozen=True)
class Variant:
    """What a file holds for one target."""

    manifest: Manifest
    graph: Span
    code: Span


def encode(variants: Sequence[Variant], digests: Mapping[str, str]) -> bytes:
    """The canonical JSON of the variants and of the SHA-256 of each weight's bytes. ``Broken`` when a rule does not hold. The metadata, which
    may hold a tokenizer, is written once."""
    rows = [v if n == 0 else replace(v, manifest=replace(v.manifest, metadata={})) for n, v in enumerate(variants)]
    document = {"variants": _encoded(rows, tuple[Variant, ...]), "digests": dict(digests)}
    data = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    decode(data)
    return data


def decode(data: bytes) -> tuple[tuple[Variant, ...], dict[str, str]]:
    """The variants and the digests of the weights; ``Broken`` for anything that is not as the rules want it."""
    document = _parsed(data)
    top = _fields(document, {"variants", "digests"}, "the document")
    variants = _decoded(top["variants"], tuple[Variant, ...], "variants")
    digests = _decoded(top["digests"], Mapping[str, str], "digests")
    check(variants, digests)
    shared = variants[0].manifest.metadata
    return tuple(replace(v, manifest=replace(v.manifest, metadata=shared)) for v in variants), digests


def _parsed(data: bytes) -> object:
    """JSON, strictly: no key twice, no floats, no numbers beyond 64 bits."""

    once = no_key_twice(lambda key: Broken("M1", f"the key {_shown(key)} occurs twice in an object"))

    def integer(text: str) -> int:
        if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 63:
            _fail("M1", f"the number {text[:24]}… has more than 64 bits")
        return int(text)

    def refused(text: str) -> NoReturn:
        _fail("M1", f"{text[:24]} is no whole number")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_int=integer, parse_float=refused, parse_constant=refused)
    except UnicodeDecodeError as error:
        raise Broken("M1", "it is not UTF-8", error.start) from None
    except json.JSONDecodeError as error:
        raise Broken("M1", f"it is not JSON: {error.msg}", len(data.decode("utf-8")[: error.pos].encode())) from None
    except RecursionError:
        raise Broken("M1", "it is nested too deeply") from None


# --- dataclasses to JSON and back ----------------------------------------------------------------------------------------------------


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _encoded(value: Any, hint: Any) -> object:
    if hint == Dim:
        return value if isinstance(value, int) else str(value)
    if hint is TensorType:
        out: dict[str, object] = {"dtype": value.dtype.name, "shape": [_encoded(d, Dim) for d in value.shape]}
        if isinstance(value.layout, Panels):
            out["panels"] = value.layout.width
            if value.layout.depth > 1:
                out["depth"] = value.layout.depth
        return out
    if dataclasses.is_dataclass(hint):
        return {name: _encoded(getattr(value, name), h) for name, h in _hints(typing.cast(type, hint)).items()}
    if typing.get_origin(hint) is tuple:
        return [_encoded(v, h) for v, h in zip(value, _items(hint, len(value)), strict=True)]
    return dict(value) if isinstance(value, Mapping) else value


def _decoded(value: object, hint: Any, path: str) -> Any:
    """``value`` as an instance of ``hint``; every type that occurs in a manifest is handled, and no other."""
    if hint == Dim:
        return _dim(value, path)
    if hint is TensorType:
        return _tensor_type(value, path)
    if dataclasses.is_dataclass(hint):
        hints = _hints(typing.cast(type, hint))
        found = _fields(value, set(hints), path)
        decoded = {name: _decoded(found[name], h, f"{path}.{name}") for name, h in hints.items()}
        try:
            return typing.cast(Any, hint)(**decoded)
        except ValueError as error:
            _fail("M2", f"{path}: {error}")
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list) or (hint.__args__[-1] is not Ellipsis and len(value) != len(hint.__args__)):
            _fail("M1", f"{path} is no list" if not isinstance(value, list) else f"{path} has {len(value)} elements, not {len(hint.__args__)}")
        return tuple(_decoded(v, h, f"{path}[{i}]") for i, (v, h) in enumerate(zip(value, _items(hint, len(value)), strict=True)))
    if origin in (types.UnionType, typing.Union) and _NONE in hint.__args__:
        (inner,) = (a for a in hint.__args__ if a is not _NONE)
        return None if value is None else _decoded(value, inner, path)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            _fail("M1", f"{path} is no object")
        return {_text(k, f"a key of {path}"): _text(v, f"{path}[{_shown(k)}]") for k, v in value.items()}
    if hint is str:
        return _text(value, path)
    assert hint is int, f"{path}: the manifest has a field of a type that is not handled: {hint}"
    if type(value) is not int:
        _fail("M1", f"{path} is no whole number")
    return value


def _items(hint: Any, count: int) -> Sequence[Any]:
    """The hint of each element of a tuple."""
    return [hint.__args__[0]] * count if hint.__args__[-1] is Ellipsis else hint.__args__


def _fields(value: object, expected: set[str], path: str) -> dict[str, object]:
    """An object of exactly the expected keys."""
    if not isinstance(value, dict):
        _fail("M1", f"{path} is no object")
    for key in sorted(expected - value.keys()):
        _fail("M1", f"{path} has no '{key}'")
    for key in sorted(value.keys() - expected):
        _fail("M1", f"{path} has a field that does not belong there: {_shown(key)}")
    return value


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        _fail("M1", f"{path} is no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        _fail("M1", f"{path} holds half of a surrogate pair")
    return value


@functools.lru_cache(maxsize=128)
def _expression(text: str) -> Dim:
    """A manifest repeats few texts many times: those of every layer are the same."""
    return parse_dim(text, MAX_DIM_TEXT)


def _dim(value: object, path: str) -> Dim:
    if type(value) is int:
        if value < 0:
            _fail("M1", f"{path} is negative: {value}")
        return value
    text = _text(value, path)
    try:
        dim = _expression(text)
    except ValueError as error:
        _fail("M1", f"{path} is no dim: {str(error)[:200]}")
    if not isinstance(dim, SymExpr):
        _fail("M1", f"{path} is a number written as text: {_shown(text)}")
    return dim


def _tensor_type(value: object, path: str) -> TensorType:
    keys = {"dtype", "shape"}
    if isinstance(value, dict) and "panels" in value:
        keys |= {"panels"} | ({"depth"} if "depth" in value else set())
    found = _fields(value, keys, path)
    name, shape = _text(found["dtype"], f"{path}.dtype"), found["shape"]
    if name not in DType.__members__:
        _fail("M1", f"{path}.dtype is no dtype: {_shown(name)}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        _fail("M1", f"{path}.shape is no list of at most {MAX_RANK} dims")
    dims = tuple(_dim(d, f"{path}.shape[{i}]") for i, d in enumerate(shape))
    if "panels" not in found:
        return TensorType(dims, DType[name])
    width = found["panels"]
    if type(width) is not int or not 1 <= width <= MAX_PANEL or len(dims) < 2:
        _fail("M1", f"{path}.panels is no width of panels of a matrix")
    if "depth" not in found:
        return TensorType(dims, DType[name], Panels(width))
    depth = found["depth"]
    if type(depth) is not int or not 2 <= depth <= MAX_DEPTH:
        _fail("M1", f"{path}.depth is no depth of panels")
    return TensorType(dims, DType[name], Panels(width, depth))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _fail(rule: str, message: str) -> NoReturn:
    raise Broken(rule, message)


# --- the rules ---------------------------------------------------------------------------------------------------------------------


def check(variants: Sequence[Variant], digests: Mapping[str, str]) -> None:
    """``Broken`` unless the rules M2 to M9 hold."""
    if not 1 <= len(variants) <= MAX_VARIANTS:
        _fail("M1", f"there are {len(variants)} variants")
    for variant in variants:
        _check_manifest(variant.manifest)
    first = variants[0].manifest
    for n, variant in enumerate(variants[1:], 1):
        if _common(variant.manifest) != _common(first) or variant.manifest.metadata:
            _fail("M9", f"variant {n}, for {_shown(variant.manifest.target.name)}, is not the module that the first variant is")
    _distinct([v.manifest.target.name for v in variants], "target", "M8")
    weights = joined_weights([v.manifest for v in variants])
    _check_weights(weights)
    if digests.keys() != {w.name for w in weights}:
        _fail("M7", "the digests are not those of the weights")
    for name, digest in digests.items():
        if not _DIGEST.match(digest):
            _fail("M7", f"the digest of weight {_shown(name)} is {_shown(digest)}")


def _common(m: Manifest) -> tuple[object, ...]:
    """What variants agree in."""
    return (m.name, m.compiler, m.abi, m.symbols, [(e.name, e.inputs, e.outputs) for e in m.entries])


def joined_weights(manifests: Sequence[Manifest]) -> tuple[StoredWeight, ...]:
    """The weights of all variants in the order in which they lie, each once. ``Broken`` when two of one name differ."""
    rows: dict[str, StoredWeight] = {}
    for w in (w for m in manifests for w in m.weights):
        if rows.setdefault(w.name, w) != w:
            _fail("M6", f"weight {_shown(w.name)} is not the same in all variants")
    return tuple(sorted(rows.values(), key=lambda w: w.offset))


def check_spans(spans: Sequence[Span], length: int, what: str) -> None:
    """``Broken`` unless M10 holds of a section of ``length`` bytes."""
    end = 0
    for span in dict.fromkeys(spans):
        if span.offset != -(-end // ALIGNMENT) * ALIGNMENT or span.length < 0:
            _fail("M10", f"a {what} has {span.length} bytes at byte {span.offset} of its section, after one that ends at {end}")
        end = span.offset + span.length
    if end != length:
        _fail("M10", f"the last {what} ends at byte {end} of a section of {length}")


def _check_manifest(manifest: Manifest) -> None:
    declared: dict[str, bool] = {}  # whether the symbol has one value only
    for name, fact in manifest.symbols:
        if not SYMBOL_NAME.match(name) or name in RESERVED:
            _fail("M2", f"{_shown(name)} is no name of a symbol")
        if name in declared:
            _fail("M2", f"the symbol '{name}' is declared twice")
        if fact.high is not None and fact.high // fact.divisor * fact.divisor < fact.low:
            _fail("M2", f"no number is a '{name}': {fact}")
        declared[name] = fact.low == fact.high
    if not manifest.entries:
        _fail("M3", "there is no entry")
    _distinct([e.name for e in manifest.entries], "entry")
    _distinct([w.name for w in manifest.weights], "weight")
    for entry in manifest.entries:
        _check_entry(entry, declared)
    target = manifest.target
    for word in (target.triple, target.cpu, *target.features):
        if not _WORD.match(word):
            _fail("M8", f"{_shown(word)} is no word")


def _distinct(names: Sequence[str], what: str, rule: str = "M3") -> None:
    seen: set[str] = set()
    for name in names:
        if not name or not name.isprintable() or len(name) > 4096:
            _fail(rule, f"{_shown(name)} is no name of an {what}" if what[0] in "eio" else f"{_shown(name)} is no name of a {what}")
        if name in seen:
            _fail(rule, f"the {what} {_shown(name)} occurs twice")
        seen.add(name)


def _check_entry(entry: Entry, declared: Mapping[str, bool]) -> None:
    name = f"entry {_shown(entry.name)}"
    _distinct([p.name for p in entry.inputs], "input")
    _distinct([p.name for p in entry.outputs], "output")
    if not _IDENTIFIER.match(entry.symbol) or not entry.symbol.startswith("tfir_entry_"):
        _fail("M4", f"{name} has the symbol {_shown(entry.symbol)}")
    bound = {n for n, single in declared.items() if single}
    for port in entry.inputs:
        _check_port(port, declared.keys(), f"{name}, input {_shown(port.name)}")
        bound |= port.type.symbols
    for port in entry.outputs:
        _check_port(port, bound, f"{name}, output {_shown(port.name)}")
    for what, dim in (("arena", entry.arena_bytes), ("scratch", entry.scratch_bytes)):
        _check_symbols(symbols_of(dim), bound, f"{name}, {what} size")
    for kernel in entry.kernels:
        _check_symbols(symbols_of(kernel.flops, kernel.bytes), bound, f"{name}, kernel {_shown(kernel.symbol)}")
    if entry.barriers < 0:
        _fail("M1", f"{name} has {entry.barriers} barriers")


def _check_port(port: Port, allowed: typing.AbstractSet[str], place: str) -> None:
    if port.type.layout != ROW_MAJOR:
        _fail("M5", f"{place} is packed: {port.type}")
    _check_symbols(port.type.symbols, allowed, place)


def _check_symbols(used: set[str], allowed: typing.AbstractSet[str], place: str) -> None:
    unknown = sorted(used - allowed)
    if unknown:
        _fail("M5", f"{place} mentions {', '.join(unknown)[:200]}, of which nothing is known")


def _check_weights(weights: Sequence[StoredWeight]) -> None:
    end = 0
    for w in weights:
        if not w.type.is_static or w.type.bytes != w.bytes:
            _fail("M6", f"weight {_shown(w.name)} is {w.type} and is said to have {w.bytes} bytes")
        if w.offset != -(-end // WEIGHT_ALIGNMENT) * WEIGHT_ALIGNMENT:
            problem = "overlaps the one before" if w.offset < end else "does not begin at the page after the one before"
            _fail("M6", f"weight {_shown(w.name)} at byte {w.offset} {problem}, which ends at {end}")
        end = w.offset + w.bytes


def quantization(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """What the metadata tells about quantization: the recipe, under the recipe's name how many products it took, and what was decided about each.
    None where there is none, or something else: metadata is what anybody wrote."""
    try:
        told = json.loads(metadata.get(QUANTIZATION_KEY, "null"))
    except (ValueError, RecursionError):
        return None
    if not _holds(told, {"recipe": str, "products": list}):
        return None
    name = recipe_name(told)
    kinds = {"name": str, name: bool, "reason": (str, _NONE)}
    return told if _holds(told, {name: int}) and all(_holds(row, kinds) for row in told["products"]) else None


def recipe_name(told: Mapping[str, Any]) -> str:
    """The name of the recipe, without its options, in what is told about quantization."""
    name: str = told["recipe"].partition("{")[0]
    return name


def _holds(value: object, kinds: Mapping[str, Any]) -> bool:
    return isinstance(value, dict) and all(name in value and isinstance(value[name], kind) for name, kind in kinds.items())
