"""Broken files, each refused with its code, its place and help, without a crash and without much memory."""

from __future__ import annotations

import gc
import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from artifact_harness import Document, document, good_fat_file, good_file, packed, parts, patched, rows, seal, with_manifest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_harness import encoder_inputs

from trustformers_ir.ir.abi import ABI_VERSION
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.runtime import artifact

TRUNCATED, CORRUPT, MANIFEST, VERSION = Code.ARTIFACT_TRUNCATED, Code.ARTIFACT_CORRUPT, Code.ARTIFACT_MANIFEST, Code.ARTIFACT_VERSION
Case = tuple[Callable[[], bytes], Code, str]
ABI = b'"abi":%d' % ABI_VERSION
ROW, NAMES = 48, ("manifest", "graph", "code", "weights")


def flipped(offset: int) -> bytes:
    out = bytearray(good_file())
    out[offset] ^= 0x10
    return bytes(out)


def set_in(*path: Any, value: Any) -> Callable[[], bytes]:
    """The good file with one value of its document replaced."""

    def change(d: Document) -> None:
        at: Any = d
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value

    return lambda: with_manifest(change)


def without(*path: Any) -> Callable[[], bytes]:
    def change(d: Document) -> None:
        at: Any = d
        for step in path[:-1]:
            at = at[step]
        del at[path[-1]]

    return lambda: with_manifest(change)


def twice(*path: Any) -> Callable[[], bytes]:
    """The first element of a list of the document, again."""

    def change(d: Document) -> None:
        at: Any = d
        for step in path:
            at = at[step]
        at.insert(0, dict(at[0]) if isinstance(at[0], dict) else list(at[0]))

    return lambda: with_manifest(change)


def text_of_manifest(old: bytes, new: bytes) -> Callable[[], bytes]:
    def make() -> bytes:
        text = parts(good_file())[0]
        assert old in text
        return packed(text.replace(old, new, 1))

    return make


TOP = ("variants", 0, "manifest")
MAIN = (*TOP, "entries", 0)
WEIGHT = (*TOP, "weights", 1)

CASES: dict[str, Case] = {
    # the file as a whole
    "empty": (lambda: b"", Code.NOT_AN_ARTIFACT, "does not begin"),
    "wrong magic": (lambda: flipped(1), Code.NOT_AN_ARTIFACT, "does not begin"),
    "another kind of file": (lambda: b"PK\3\4" + bytes(1000), Code.NOT_AN_ARTIFACT, "does not begin"),
    "line ends changed": (lambda: good_file().replace(b"\r\n", b"\n"), Code.NOT_AN_ARTIFACT, "does not begin"),
    "only the magic": (lambda: good_file()[:8], TRUNCATED, "8 bytes"),
    "part of the magic": (lambda: good_file()[:3], TRUNCATED, "3 bytes"),
    "half a header": (lambda: good_file()[:128], TRUNCATED, "128 bytes"),
    "the header alone": (lambda: good_file()[:256], TRUNCATED, "were written"),
    "the last byte missing": (lambda: good_file()[:-1], TRUNCATED, "were written"),
    "something appended": (lambda: good_file() + b"x", CORRUPT, "1 bytes follow"),
    "newer version": (lambda: patched(8, "<I", 4), VERSION, "version 4"),
    "older version": (lambda: patched(8, "<I", 1), VERSION, "version 1"),
    "version zero": (lambda: patched(8, "<I", 0), VERSION, "version 0"),
    # the header
    "length of the header": (lambda: patched(12, "<I", 512), CORRUPT, "header"),
    "length of the file, unsealed": (lambda: flipped(16), CORRUPT, "checksum of the header"),
    "length of the file": (lambda: patched(16, "<Q", 1 << 60), TRUNCATED, "were written"),
    "huge length of the file": (lambda: patched(16, "<Q", (1 << 64) - 1), TRUNCATED, "were written"),
    "small length of the file": (lambda: patched(16, "<Q", 300), CORRUPT, "follow"),
    "reserved word": (lambda: patched(24, "<Q", 7), CORRUPT, "reserved"),
    "digest of the weights": (lambda: patched(32 + 3 * ROW + 16, "<Q", 1), CORRUPT, "digests of the weights"),
    # sections
    "overlapping sections": (lambda: patched(32 + ROW, "<Q", 256), CORRUPT, "graph should begin"),
    "a section elsewhere": (lambda: patched(32 + 2 * ROW, "<Q", 1 << 63), CORRUPT, "code should begin"),
    "weights off their page": (lambda: patched(32 + 3 * ROW, "<Q", rows(good_file())[3][0] + 64), CORRUPT, "weights should begin"),
    "shorter weights": (lambda: patched(32 + 3 * ROW + 8, "<Q", 100), CORRUPT, "belong to no section"),
    "a page more of weights": (lambda: packed(weights=parts(good_file())[3] + bytes(4096)), MANIFEST, "M6"),
    "a shorter section of weights": (lambda: packed(weights=parts(good_file())[3][:-1]), MANIFEST, "M6"),
    "bytes between sections": (lambda: _with_gap(), CORRUPT, "not zero"),
    "bytes between weights": (lambda: _with_gap_between_weights(), CORRUPT, "between two weights"),
    "empty manifest": (lambda: packed(b""), MANIFEST, "not JSON"),
    "the graph is not UTF-8": (lambda: packed(graph=b"module \xff"), MANIFEST, "not UTF-8"),
    "no object code": (lambda: packed(code=b""), Code.ARTIFACT_CODE, "linking"),
    "other object code": (lambda: packed(code=b"\x7fELF" + bytes(2000)), Code.ARTIFACT_CODE, "linking"),
    "half the object code": (lambda: packed(code=parts(good_file())[2][:5000]), Code.ARTIFACT_CODE, "linking"),
    # the manifest as JSON
    "invalid UTF-8": (text_of_manifest(b"encoder", b"enc\xff\xfeer"), MANIFEST, "M1: it is not UTF-8"),
    "no JSON": (lambda: packed(b'{"manifest":'), MANIFEST, "M1: it is not JSON"),
    "text after the JSON": (lambda: packed(parts(good_file())[0] + b"{}"), MANIFEST, "M1: it is not JSON"),
    "a list": (lambda: packed(b"[]"), MANIFEST, "M1: the document is no object"),
    "null": (lambda: packed(b"null"), MANIFEST, "no object"),
    "deep JSON": (lambda: packed(b"[" * 200_000), MANIFEST, "nested too deeply"),
    "deep JSON, closed": (lambda: packed(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), MANIFEST, "nested too deeply"),
    "a huge number": (text_of_manifest(ABI, b'"abi":' + b"9" * 100_000), MANIFEST, "64 bits"),
    "a large number": (text_of_manifest(ABI, b'"abi":18446744073709551616'), MANIFEST, "64 bits"),
    "a float": (text_of_manifest(ABI, b'"abi":1.0'), MANIFEST, "no whole number"),
    "an exponent": (text_of_manifest(ABI, b'"abi":1e400'), MANIFEST, "no whole number"),
    "not a number": (text_of_manifest(ABI, b'"abi":NaN'), MANIFEST, "no whole number"),
    "a key twice": (text_of_manifest(ABI, ABI + b"," + ABI), MANIFEST, "twice"),
    "half a surrogate": (text_of_manifest(b'"name":"encoder"', b'"name":"\\ud800"'), MANIFEST, "surrogate"),
    # its fields
    "missing digests": (without("digests"), MANIFEST, "no 'digests'"),
    "missing entries": (without(*TOP, "entries"), MANIFEST, "no 'entries'"),
    "missing field of a port": (without(*MAIN, "inputs", 0, "type"), MANIFEST, "manifest.entries[0].inputs[0] has no 'type'"),
    "a field too many": (set_in(*TOP, "extra", value=1), MANIFEST, "extra"),
    "text for a number": (set_in(*TOP, "abi", value="1"), MANIFEST, "manifest.abi is no whole number"),
    "a bool for a number": (set_in(*TOP, "abi", value=True), MANIFEST, "manifest.abi is no whole number"),
    "a number for text": (set_in(*TOP, "name", value=1), MANIFEST, "manifest.name is no text"),
    "null for text": (set_in(*TOP, "target", "cpu", value=None), MANIFEST, "manifest.target.cpu is no text"),
    "an object for a list": (set_in(*TOP, "entries", value={}), MANIFEST, "manifest.entries is no list"),
    "a list for an object": (set_in(*TOP, "target", value=[]), MANIFEST, "manifest.target is no object"),
    "a pair of three": (set_in(*TOP, "symbols", 0, value=["a", {}, 1]), MANIFEST, "3 elements, not 2"),
    "metadata of numbers": (set_in(*TOP, "metadata", value={"a": 1}), MANIFEST, "manifest.metadata['a'] is no text"),
    "unknown dtype": (set_in(*MAIN, "inputs", 0, "type", "dtype", value="f8"), MANIFEST, "'f8'"),
    "dtype with another name": (set_in(*MAIN, "inputs", 0, "type", "dtype", value="numpy"), MANIFEST, "no dtype"),
    "rank of a thousand": (set_in(*MAIN, "inputs", 0, "type", "shape", value=[1] * 1000), MANIFEST, "at most 32"),
    "panels without depth": (set_in(*MAIN, "inputs", 0, "type", "depth", value=4), MANIFEST, "depth"),
    "panels of nothing": (set_in(*MAIN, "inputs", 0, "type", "panels", value=0), MANIFEST, "panels"),
    "packed input": (set_in(*MAIN, "inputs", 0, "type", "panels", value=8), MANIFEST, "M5"),
    # symbols and dims
    "a symbol twice": (twice(*TOP, "symbols"), MANIFEST, "M2: the symbol 'batch' is declared twice"),
    "a symbol that is no name": (set_in(*TOP, "symbols", 0, 0, value="a b"), MANIFEST, "M2"),
    "impossible facts": (set_in(*TOP, "symbols", 0, 1, "low", value=65), MANIFEST, "M2"),
    "negative facts": (set_in(*TOP, "symbols", 0, 1, "low", value=-1), MANIFEST, "M2"),
    "divisor zero": (set_in(*TOP, "symbols", 0, 1, "divisor", value=0), MANIFEST, "M2"),
    "facts of no number": (set_in(*TOP, "symbols", 0, 1, "divisor", value=1000), MANIFEST, "M2: no number"),
    "a negative dim": (set_in(*MAIN, "inputs", 0, "type", "shape", 0, value=-1), MANIFEST, "negative"),
    "a dim of unknown symbols": (set_in(*MAIN, "outputs", 0, "type", "shape", 0, value="other"), MANIFEST, "M5"),
    "an input of unknown symbols": (set_in(*MAIN, "inputs", 0, "type", "shape", 0, value="other"), MANIFEST, "M5"),
    "an arena of unknown symbols": (set_in(*MAIN, "arena_bytes", value="64*other"), MANIFEST, "M5"),
    "code for a dim": (set_in(*MAIN, "arena_bytes", value="__import__('os').abort()"), MANIFEST, "no dim"),
    "a number as text": (set_in(*MAIN, "arena_bytes", value="64"), MANIFEST, "number written as text"),
    "a dim divided by zero": (set_in(*MAIN, "arena_bytes", value="batch//0"), MANIFEST, "no dim"),
    "a deep dim": (set_in(*MAIN, "arena_bytes", value="(" * 1000 + "batch" + ")" * 1000), MANIFEST, "no dim"),
    "a dim of many minus signs": (set_in(*MAIN, "arena_bytes", value="-" * 30_000 + "batch"), MANIFEST, "no dim"),
    "a dim that explodes": (set_in(*MAIN, "arena_bytes", value="*".join(["(batch+seq+1)"] * 3000)), MANIFEST, "no dim"),
    "a long dim": (set_in(*MAIN, "arena_bytes", value="batch+" * 20_000 + "1"), MANIFEST, "no dim"),
    "a dim with a long number": (set_in(*MAIN, "arena_bytes", value="batch*" + "9" * 10_000), MANIFEST, "no dim"),
    "a negative size": (set_in(*MAIN, "scratch_bytes", value=-64), MANIFEST, "negative"),
    "a negative number of barriers": (set_in(*MAIN, "barriers", value=-1), MANIFEST, "barriers"),
    # entries
    "no entry": (set_in(*TOP, "entries", value=[]), MANIFEST, "M3"),
    "an entry twice": (twice(*TOP, "entries"), MANIFEST, "M3"),
    "an input twice": (twice(*MAIN, "inputs"), MANIFEST, "M3"),
    "an empty name": (set_in(*MAIN, "inputs", 0, "name", value=""), MANIFEST, "M3"),
    "a name of control characters": (set_in(*MAIN, "inputs", 0, "name", value="\x1b[2J"), MANIFEST, "M3"),
    "a symbol of the C library": (set_in(*MAIN, "symbol", value="system"), MANIFEST, "M4"),
    "a symbol that is no identifier": (set_in(*MAIN, "symbol", value="tfir_entry_main; rm"), MANIFEST, "M4"),
    "a symbol that is not there": (set_in(*MAIN, "symbol", value="tfir_entry_other"), Code.ARTIFACT_CODE, "linking"),
    # weights
    "a weight twice": (twice(*TOP, "weights"), MANIFEST, "M3"),
    "overlapping weights": (set_in(*WEIGHT, "offset", value=0), MANIFEST, "overlaps"),
    "an unaligned weight": (set_in(*WEIGHT, "offset", value=8200), MANIFEST, "M6"),
    "a weight far away": (set_in(*WEIGHT, "offset", value=1 << 62), MANIFEST, "M6"),
    "a negative offset": (set_in(*WEIGHT, "offset", value=-4096), MANIFEST, "M6"),
    "too few bytes of a weight": (set_in(*WEIGHT, "bytes", value=1), MANIFEST, "M6"),
    "negative bytes of a weight": (set_in(*WEIGHT, "bytes", value=-1), MANIFEST, "M6"),
    "a huge weight": (set_in(*WEIGHT, "type", value={"dtype": "f32", "shape": [1 << 40, 1 << 40]}), MANIFEST, "M6"),
    "a weight of symbols": (set_in(*WEIGHT, "type", "shape", 0, value="batch"), MANIFEST, "M6"),
    "the last weight reaches out": (lambda: with_manifest(_longer_last_weight), MANIFEST, "M6"),
    "a digest too few": (without("digests", "bias"), MANIFEST, "M7"),
    "a digest too many": (set_in("digests", "other", value="0" * 64), MANIFEST, "M7"),
    "a digest that is none": (set_in("digests", "bias", value="0" * 63 + "g"), MANIFEST, "M7"),
    "another digest": (set_in("digests", "bias", value="0" * 64), CORRUPT, "weight 'bias'"),
    # machines and versions
    "another calling convention": (set_in(*TOP, "abi", value=ABI_VERSION + 1), VERSION, f"version {ABI_VERSION + 1}"),
    "a feature of another CPU": (set_in(*TOP, "target", "features", value=["quantum"]), Code.ARTIFACT_TARGET, "quantum"),
    "another architecture": (set_in(*TOP, "target", "triple", value="riscv64-unknown-linux-gnu"), Code.ARTIFACT_TARGET, "riscv64"),
    "another system": (set_in(*TOP, "target", "triple", value="x86_64-pc-windows-msvc"), Code.ARTIFACT_TARGET, "windows"),
    "a feature that is no word": (set_in(*TOP, "target", "features", value=["avx,+evil"]), MANIFEST, "M8"),
    "an empty triple": (set_in(*TOP, "target", "triple", value=""), MANIFEST, "M8"),
}
for _i, _name in enumerate(NAMES):
    _begin, _length = rows(good_file())[_i]
    CASES[f"cut before the {_name}"] = (lambda b=_begin: good_file()[:b], TRUNCATED, "were written")
    CASES[f"cut inside the {_name}"] = (lambda b=_begin + _length // 2: good_file()[:b], TRUNCATED, "were written")
    CASES[f"a byte of the {_name} flipped"] = (lambda b=_begin + _length // 2: flipped(b), CORRUPT, "")
    CASES[f"length of the {_name}"] = (lambda i=_i: patched(32 + ROW * i + 8, "<Q", 1 << 62), CORRUPT, "beyond the end")
    CASES[f"largest length of the {_name}"] = (lambda i=_i: patched(32 + ROW * i + 8, "<Q", (1 << 64) - 1), CORRUPT, "beyond the end")
    CASES[f"length zero of the {_name}"] = (lambda i=_i: patched(32 + ROW * i + 8, "<Q", 0), CORRUPT, "")


def _with_gap() -> bytes:
    out = bytearray(good_file())
    out[rows(good_file())[3][0] - 1] = 1
    return bytes(out)


def _with_gap_between_weights() -> bytes:
    weights = document(good_file())["variants"][0]["manifest"]["weights"]
    out = bytearray(good_file())
    out[rows(good_file())[3][0] + weights[0]["offset"] + weights[0]["bytes"]] = 1
    return bytes(out)


def _longer_last_weight(d: Document) -> None:
    last = d["variants"][0]["manifest"]["weights"][-1]
    last["type"]["shape"][0] += 1
    last["bytes"] += 4


def fat(*path: Any, value: Any) -> Callable[[], bytes]:
    """The good file of two variants with one value of its document replaced."""

    def change(d: Document) -> None:
        at: Any = d["variants"]
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value

    return lambda: with_manifest(change, good_fat_file())


def fat_changed(change: Callable[[list[Any]], object]) -> Callable[[], bytes]:
    return lambda: with_manifest(lambda d: change(d["variants"]), good_fat_file())


def _fat_gap(section: int) -> bytes:
    """A byte that is not zero after the first part of a section."""
    data = parts(good_fat_file())
    span = document(good_fat_file())["variants"][0][NAMES[section]]
    assert span["length"] % 64
    changed = bytearray(data[section])
    changed[span["length"]] = 1
    return packed(**{NAMES[section]: bytes(changed)}, base=good_fat_file())


SECOND = (1, "manifest")
CASES |= {
    # several targets
    "no variants": (set_in("variants", value=[]), MANIFEST, "0 variants"),
    "a thousand variants": (fat_changed(lambda v: v.extend(v[:1] * 1000)), MANIFEST, "1002 variants"),
    "variants of one target": (fat(*SECOND, "target", "name", value="cpu:avx512"), MANIFEST, "M8: the target 'cpu:avx512' occurs twice"),
    "a target without a name": (fat(*SECOND, "target", "name", value=""), MANIFEST, "M8"),
    "another module": (fat(*SECOND, "name", value="other"), MANIFEST, "M9"),
    "another compiler": (fat(*SECOND, "compiler", value="9"), MANIFEST, "M9"),
    "another convention of one variant": (fat(*SECOND, "abi", value=ABI_VERSION + 1), MANIFEST, "M9"),
    "other facts": (fat(*SECOND, "symbols", 0, 1, "high", value=7), MANIFEST, "M9"),
    "another entry": (fat(*SECOND, "entries", 0, "name", value="other"), MANIFEST, "M9"),
    "an entry less": (fat(*SECOND, "entries", value=[]), MANIFEST, "M3"),
    "other inputs": (fat(*SECOND, "entries", 0, "inputs", 0, "type", "dtype", value="i32"), MANIFEST, "M9"),
    "other outputs": (fat_changed(lambda v: v[1]["manifest"]["entries"][0]["outputs"].pop()), MANIFEST, "M9"),
    "metadata of its own": (fat(*SECOND, "metadata", value={"a": "b"}), MANIFEST, "M9"),
    "a broken second manifest": (fat(*SECOND, "entries", 0, "symbol", value="system"), MANIFEST, "M4"),
    "a weight elsewhere": (fat(*SECOND, "weights", 0, "offset", value=4096), MANIFEST, "M6"),
    "a weight of another type": (fat(*SECOND, "weights", 0, "type", "dtype", value="i32"), MANIFEST, "M6"),
    "another weight over the first": (fat(*SECOND, "weights", 0, "name", value="other"), MANIFEST, "M6"),
    "code over code": (fat(1, "code", "offset", value=64), MANIFEST, "M10"),
    "code beyond its section": (fat(1, "code", "length", value=1 << 60), MANIFEST, "M10"),
    "code of negative length": (fat(1, "code", "length", value=-1), MANIFEST, "M10"),
    "code before its section": (fat(1, "code", "offset", value=-64), MANIFEST, "M10"),
    "no code is left for nobody": (fat_changed(lambda v: v.pop()), MANIFEST, "M10"),
    "a graph beyond its section": (fat(1, "graph", "length", value=1 << 60), MANIFEST, "M10"),
    "graphs out of order": (fat(0, "graph", "offset", value=64), MANIFEST, "M10"),
    "a span too many": (fat(1, "other", value={"offset": 0, "length": 0}), MANIFEST, "other"),
    "bytes between codes": (lambda: _fat_gap(2), CORRUPT, "between two parts of the code"),
    "features of no machine": (
        fat_changed(lambda v: [x["manifest"]["target"].update(features=["quantum"]) for x in v]),
        Code.ARTIFACT_TARGET,
        "quantum",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_hostile(name: str, tmp_path: Path) -> None:
    make, code, text = CASES[name]
    content = make()
    path = tmp_path / "model.tfc"
    path.write_bytes(content)
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(CompilerError) as caught:
            artifact.load(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    first = caught.value.diagnostics[0]
    assert first.code is code, caught.value
    assert text in str(first)
    assert first.where.file == str(path) and first.help
    assert code is Code.ARTIFACT_TARGET or first.where.offset is not None
    assert peak < 2_000_000 + 20 * len(content)


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 150


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "absent"])
def test_only_ordinary_files(kind: str, tmp_path: Path) -> None:
    path = {"folder": tmp_path, "pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "absent": tmp_path / "absent"}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(CompilerError) as caught:
        artifact.load(path)
    assert caught.value.codes == (Code.FILE_NOT_FOUND if kind == "absent" else Code.UNREADABLE,)


def test_every_byte_is_covered(tmp_path: Path) -> None:
    """Flips a bit of every byte of the header, and of bytes all over the rest."""
    path = tmp_path / "model.tfc"
    size = len(good_file())
    for offset in [*range(256), *range(256, size, 97), size - 1]:
        path.write_bytes(flipped(offset))
        with pytest.raises(CompilerError):
            artifact.inspect(path).check_weights()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4))
def test_changed_manifests_are_refused_or_valid(tmp_path_factory: Any, edits: list[tuple[int, bytes]]) -> None:
    text = bytearray(parts(good_file())[0])
    for position, new in edits:
        at = position % len(text)
        text[at : at + len(new)] = new
    path = tmp_path_factory.getbasetemp() / "fuzz.tfc"
    path.write_bytes(packed(bytes(text)))
    try:
        artifact.inspect(path).check_weights()
    except CompilerError as error:
        assert all(d.where.file for d in error.diagnostics)  # noqa: PT017


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), 1 << 64) | st.text(max_size=5) | st.sampled_from(["batch", "64*seq", "f32", "other//0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "type", "shape", "dtype", "low"]), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10_000), json_values)
def test_values_replaced_at_random(tmp_path_factory: Any, place: int, value: Any) -> None:
    whole = document(good_file())
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            collect(node[key])

    collect(whole)
    node, key = places[place % len(places)]
    node[key] = value
    path = tmp_path_factory.getbasetemp() / "fuzz2.tfc"
    path.write_bytes(packed(whole))
    try:
        artifact.inspect(path)
    except CompilerError as error:
        assert all(d.where.file for d in error.diagnostics)  # noqa: PT017


def test_the_harness_makes_good_files(tmp_path: Path) -> None:
    path = tmp_path / "model.tfc"
    assert packed() == good_file() == seal(good_file())
    path.write_bytes(packed(json.dumps(document(good_file())).encode()))  # other spacing: valid, if not canonical
    artifact.load(path)(*encoder_inputs())
    assert struct.calcsize("<8sIIQQ") + 4 * ROW + 32 == 256
