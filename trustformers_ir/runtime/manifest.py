"""The manifest as canonical JSON and back. What comes back has been checked against the numbered rules below, and nothing else is trusted.

The JSON mirrors the dataclasses of ``ir/abi.py``: an object per dataclass with a key per field, a list per tuple, a number or the text of an
expression per dim. Canonical means sorted keys, no spaces, UTF-8: equal manifests have equal bytes. ``decode`` builds no object that the
dataclasses do not announce.

A file may hold code for several targets: a :class:`Variant` per target, best first, each with a manifest of its own. They compute the same
functions of the same inputs (M9) and share what weights they can (M6).
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trustformers_ir.ir.abi import ALIGNMENT, QUANTIZATION_KEY, WEIGHT_ALIGNMENT, Entry, Manifest, Port, StoredWeight
from trustformers_ir.ir.dims import RESERVED, SYMBOL_NAME, symbols_of
from trustformers_ir.ir.types import ROW_MAJOR
from trustformers_ir.runtime.computed import computed_dims
from trustformers_ir.runtime.records import canonical, decoded, encoded, fail, fields_of, parsed, shown

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
    "M9": "variants have the same name, compiler, calling convention, dim symbols, entries, inputs, outputs and states; the first alone has metadata",
    "M10": "graphs and codes follow each other at multiples of 64 and fill their section; variants may share them",
    "M11": "an entry has no more states than inputs",
    "M12": "what dims that the code computes are at most follows from inputs",
}
MAX_VARIANTS = 64

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,1000}\Z")
_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,100}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_NONE = type(None)


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
    document = {"variants": encoded(rows, tuple[Variant, ...]), "digests": dict(digests)}
    data = canonical(document)
    decode(data)
    return data


def decode(data: bytes) -> tuple[tuple[Variant, ...], dict[str, str]]:
    """The variants and the digests of the weights; ``Broken`` for anything that is not as the rules want it."""
    document = parsed(data)
    top = fields_of(document, {"variants", "digests"}, "the document")
    variants = decoded(top["variants"], tuple[Variant, ...], "variants")
    digests = decoded(top["digests"], Mapping[str, str], "digests")
    check(variants, digests)
    shared = variants[0].manifest.metadata
    return tuple(replace(v, manifest=replace(v.manifest, metadata=shared)) for v in variants), digests


# --- the rules ---------------------------------------------------------------------------------------------------------------------


def check(variants: Sequence[Variant], digests: Mapping[str, str]) -> None:
    """``Broken`` unless the rules M2 to M9 hold."""
    if not 1 <= len(variants) <= MAX_VARIANTS:
        fail("M1", f"there are {len(variants)} variants")
    for variant in variants:
        _check_manifest(variant.manifest)
    first = variants[0].manifest
    for n, variant in enumerate(variants[1:], 1):
        if _common(variant.manifest) != _common(first) or variant.manifest.metadata:
            fail("M9", f"variant {n}, for {shown(variant.manifest.target.name)}, is not the module that the first variant is")
    _distinct([v.manifest.target.name for v in variants], "target", "M8")
    weights = joined_weights([v.manifest for v in variants])
    _check_weights(weights)
    if digests.keys() != {w.name for w in weights}:
        fail("M7", "the digests are not those of the weights")
    for name, digest in digests.items():
        if not _DIGEST.match(digest):
            fail("M7", f"the digest of weight {shown(name)} is {shown(digest)}")


def _common(m: Manifest) -> tuple[object, ...]:
    """What variants agree in."""
    return (m.name, m.compiler, m.abi, m.symbols, [(e.name, e.inputs, e.outputs, e.states) for e in m.entries])


def joined_weights(manifests: Sequence[Manifest]) -> tuple[StoredWeight, ...]:
    """The weights of all variants in the order in which they lie, each once. ``Broken`` when two of one name differ."""
    rows: dict[str, StoredWeight] = {}
    for w in (w for m in manifests for w in m.weights):
        if rows.setdefault(w.name, w) != w:
            fail("M6", f"weight {shown(w.name)} is not the same in all variants")
    return tuple(sorted(rows.values(), key=lambda w: w.offset))


def check_spans(spans: Sequence[Span], length: int, what: str) -> None:
    """``Broken`` unless M10 holds of a section of ``length`` bytes."""
    end = 0
    for span in dict.fromkeys(spans):
        if span.offset != -(-end // ALIGNMENT) * ALIGNMENT or span.length < 0:
            fail("M10", f"a {what} has {span.length} bytes at byte {span.offset} of its section, after one that ends at {end}")
        end = span.offset + span.length
    if end != length:
        fail("M10", f"the last {what} ends at byte {end} of a section of {length}")


def _check_manifest(manifest: Manifest) -> None:
    declared: dict[str, bool] = {}  # whether the symbol has one value only
    for name, fact in manifest.symbols:
        if not SYMBOL_NAME.match(name) or name in RESERVED:
            fail("M2", f"{shown(name)} is no name of a symbol")
        if name in declared:
            fail("M2", f"the symbol '{name}' is declared twice")
        if fact.high is not None and fact.high // fact.divisor * fact.divisor < fact.low:
            fail("M2", f"no number is a '{name}': {fact}")
        declared[name] = fact.low == fact.high
    if not manifest.entries:
        fail("M3", "there is no entry")
    _distinct([e.name for e in manifest.entries], "entry")
    _distinct([w.name for w in manifest.weights], "weight")
    try:
        computed = computed_dims(manifest).keys()
    except (ValueError, RecursionError) as error:
        fail("M12", str(error)[:200])
    for entry in manifest.entries:
        _check_entry(entry, {name: single or name in computed for name, single in declared.items()})
    target = manifest.target
    for word in (target.triple, target.cpu, *target.features):
        if not _WORD.match(word):
            fail("M8", f"{shown(word)} is no word")


def _distinct(names: Sequence[str], what: str, rule: str = "M3") -> None:
    seen: set[str] = set()
    for name in names:
        if not name or not name.isprintable() or len(name) > 4096:
            fail(rule, f"{shown(name)} is no name of an {what}" if what[0] in "eio" else f"{shown(name)} is no name of a {what}")
        if name in seen:
            fail(rule, f"the {what} {shown(name)} occurs twice")
        seen.add(name)


def _check_entry(entry: Entry, declared: Mapping[str, bool]) -> None:
    name = f"entry {shown(entry.name)}"
    _distinct([p.name for p in entry.inputs], "input")
    _distinct([p.name for p in entry.outputs], "output")
    if not _IDENTIFIER.match(entry.symbol) or not entry.symbol.startswith("tfir_entry_"):
        fail("M4", f"{name} has the symbol {shown(entry.symbol)}")
    bound = {n for n, single in declared.items() if single}
    for port in entry.inputs:
        _check_port(port, declared.keys(), f"{name}, input {shown(port.name)}")
        bound |= port.type.symbols
    for port in entry.outputs:
        _check_port(port, bound, f"{name}, output {shown(port.name)}")
    for what, dim in (("arena", entry.arena_bytes), ("scratch", entry.scratch_bytes)):
        _check_symbols(symbols_of(dim), bound, f"{name}, {what} size")
    for kernel in entry.kernels:
        _check_symbols(symbols_of(kernel.flops, kernel.bytes), bound, f"{name}, kernel {shown(kernel.symbol)}")
    if entry.barriers < 0:
        fail("M1", f"{name} has {entry.barriers} barriers")
    if not 0 <= entry.states <= len(entry.inputs):
        fail("M11", f"{name} has {entry.states} states and {len(entry.inputs)} inputs")


def _check_port(port: Port, allowed: typing.AbstractSet[str], place: str) -> None:
    if port.type.layout != ROW_MAJOR:
        fail("M5", f"{place} is packed: {port.type}")
    _check_symbols(port.type.symbols, allowed, place)


def _check_symbols(used: set[str], allowed: typing.AbstractSet[str], place: str) -> None:
    unknown = sorted(used - allowed)
    if unknown:
        fail("M5", f"{place} mentions {', '.join(unknown)[:200]}, of which nothing is known")


def _check_weights(weights: Sequence[StoredWeight]) -> None:
    end = 0
    for w in weights:
        if not w.type.is_static or w.type.bytes != w.bytes:
            fail("M6", f"weight {shown(w.name)} is {w.type} and is said to have {w.bytes} bytes")
        if w.offset != -(-end // WEIGHT_ALIGNMENT) * WEIGHT_ALIGNMENT:
            problem = "overlaps the one before" if w.offset < end else "does not begin at the page after the one before"
            fail("M6", f"weight {shown(w.name)} at byte {w.offset} {problem}, which ends at {end}")
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
