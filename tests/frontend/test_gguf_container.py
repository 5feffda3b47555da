"""The GGUF reader: files of the reference library are read exactly, hostile ones are refused with a code, a place and little memory."""

from __future__ import annotations

import gc
import random
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from mutations import mutated

from trustformers_ir.frontend.gguf.container import GgufFile, open_gguf
from trustformers_ir.frontend.gguf.kinds import KINDS
from trustformers_ir.frontend.gguf.metadata import Texts
from trustformers_ir.ir.diagnostics import Code, CompilerError, Diagnostic

HEADER, TRUNCATED, METADATA, TENSOR, SPLIT = Code.GGUF_HEADER, Code.GGUF_TRUNCATED, Code.GGUF_METADATA, Code.GGUF_TENSOR, Code.GGUF_SPLIT


# --- files by hand -------------------------------------------------------------------------------------------------------


def text(s: str | bytes) -> bytes:
    raw = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str = "a", sizes: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def pack(keys: list[bytes], tensors: list[bytes], data: bytes = b"", *, counts: tuple[int, int] | None = None, version: int = 3) -> bytes:
    many = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, *many) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


NAME = key("general.architecture", 8, text("llama"))
GOOD = pack([NAME], [tensor("a", (4,)), tensor("b", (2, 3), 0, 32)], bytes(56))
AT = GOOD.index(b"\x01\x00\x00\x00\x00\x00\x00\x00a")  # where the description of a begins
FIRST = 24  # where the first key begins

# name: (bytes, code, byte offset, part of the message)
HOSTILE: dict[str, tuple[bytes, Code, int | None, str]] = {
    "empty": (b"", TRUNCATED, 0, "0 bytes"),
    "only a header's beginning": (GOOD[:20], TRUNCATED, 20, "20 bytes"),
    "another magic": (b"GGML" + GOOD[4:], HEADER, 0, "begins with"),
    "version 1": (pack([], [], version=1), HEADER, 4, "version is 1"),
    "version 4": (pack([], [], version=4), HEADER, 4, "version is 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), HEADER, 4, "big-endian"),
    "more keys than bytes": (pack([], [], counts=(0, 1 << 60)), TRUNCATED, 16, "keys"),
    "more tensors than bytes": (pack([], [], counts=(1 << 63, 0)), TRUNCATED, 8, "tensors"),
    "all ones": (b"GGUF" + struct.pack("<I", 3) + b"\xff" * 64, TRUNCATED, 8, "tensors"),
    "too many keys": (pack([], [], bytes(1 << 20), counts=(0, 70_000)), METADATA, 16, "more than"),
    "too many tensors": (pack([], [], bytes(8 << 20), counts=(300_000, 0)), METADATA, 8, "more than"),
    "key beyond the file": (pack([struct.pack("<Q", 1000) + bytes(30)], []), TRUNCATED, FIRST + 8, "the file"),
    "overlong key": (pack([struct.pack("<Q", 1 << 40) + bytes(30)], []), METADATA, FIRST, "more than"),
    "empty key": (pack([key("", 0, b"\0")], [], counts=(0, 1)) + bytes(8), METADATA, FIRST, "empty"),
    "key twice": (pack([NAME, NAME], []), METADATA, FIRST + len(NAME), "twice"),
    "key that is not UTF-8": (pack([text(b"a\xffb") + struct.pack("<IB", 0, 1)], []), METADATA, FIRST + 9, "UTF-8"),
    "text that is not UTF-8": (pack([key("k", 8, text(b"ab\xff"))], []), METADATA, None, "UTF-8"),
    "text beyond the file": (pack([key("k", 8, struct.pack("<Q", 1 << 50))], []), TRUNCATED, None, "'k'"),
    "unknown type of a value": (pack([key("k", 13, bytes(8))], []), METADATA, None, "type 13"),
    "bool of 2": (pack([key("k", 7, b"\x02")], [], b"x" * 8), METADATA, FIRST + 13, "neither"),
    "array of an unknown type": (pack([key("k", 9, struct.pack("<IQ", 77, 0))], []), METADATA, None, "type 77"),
    "array of bools with a 3": (pack([key("k", 9, struct.pack("<IQ", 7, 3) + b"\x01\x03\x00")], []), METADATA, FIRST + 26, "neither"),
    "array beyond the file": (pack([key("k", 9, struct.pack("<IQ", 10, 1 << 61))], []), TRUNCATED, None, "elements"),
    "array of texts beyond the file": (pack([key("k", 9, struct.pack("<IQ", 8, 1 << 30))], []), TRUNCATED, None, "elements"),
    "text in an array beyond the file": (pack([key("k", 9, struct.pack("<IQ", 8, 1) + struct.pack("<Q", 1 << 63))], []), TRUNCATED, None, "text 0"),
    "last text cut off": (pack([key("k", 9, struct.pack("<IQ", 8, 2) + text("a") + bytes(4))], [])[:64], TRUNCATED, None, "k"),
    "arrays in arrays without end": (pack([key("k", 9, struct.pack("<IQ", 9, 1) * 40)], []), METADATA, None, "depth"),
    "arrays in arrays, many": (pack([key("k", 9, struct.pack("<IQ", 9, 1 << 40))], []), TRUNCATED, None, "elements"),
    "alignment of 0": (pack([key("general.alignment", 4, struct.pack("<I", 0))], []), METADATA, None, "alignment"),
    "alignment of 48": (pack([key("general.alignment", 4, struct.pack("<I", 48))], []), METADATA, None, "alignment"),
    "huge alignment": (pack([key("general.alignment", 10, struct.pack("<Q", 1 << 63))], []), METADATA, None, "alignment"),
    "alignment that is a text": (pack([key("general.alignment", 8, text("32"))], []), METADATA, None, "alignment"),
    "alignment that is true": (pack([key("general.alignment", 7, b"\x01")], []), METADATA, None, "alignment"),
    "name beyond the file": (pack([], [struct.pack("<Q", 60) + bytes(20)]), TRUNCATED, None, "name of a tensor"),
    "overlong name": (pack([], [tensor("a" * 65)], bytes(16)), METADATA, FIRST, "65 bytes"),
    "tensor without a name": (pack([], [tensor("")], bytes(16)), TENSOR, FIRST, "no name"),
    "five axes": (pack([], [tensor("a", (1, 1, 1, 1, 1))], bytes(16)), TENSOR, FIRST, "5 axes"),
    "2^32 - 1 axes": (pack([], [text("a") + struct.pack("<I", (1 << 32) - 1) + bytes(40)]), TENSOR, FIRST, "axes"),
    "unknown type of a tensor": (pack([], [tensor("a", kind=99)], bytes(16)), TENSOR, FIRST, "type 99"),
    "removed type of a tensor": (pack([], [tensor("a", kind=4)], bytes(16)), TENSOR, FIRST, "type 4"),
    "sizes whose product overflows": (pack([], [tensor("a", (1 << 32, 1 << 32, 4))], bytes(16)), TRUNCATED, FIRST, "ends at byte"),
    "size of 2^64 - 1": (pack([], [tensor("a", ((1 << 64) - 1,))], bytes(16)), TENSOR, FIRST, "sizes"),
    "part of a block": (pack([], [tensor("a", (33,), 2)], bytes(64)), TENSOR, FIRST, "block of Q4_0"),
    "offset beyond the file": (pack([], [tensor("a", offset=1 << 40)], bytes(16)), TRUNCATED, FIRST, "ends at byte"),
    "offset that overflows": (pack([], [tensor("a", offset=(1 << 64) - 32)], bytes(16)), TRUNCATED, FIRST, "ends at byte"),
    "offset between alignments": (pack([], [tensor("a", offset=4)], bytes(64)), TENSOR, FIRST, "multiple"),
    "data cut off": (GOOD[:-1], TRUNCATED, None, "'b' ends"),
    "no data": (GOOD[:-56], TRUNCATED, AT, "'a' ends"),
    "tensor twice": (pack([], [tensor("a"), tensor("a", offset=32)], bytes(48)), TENSOR, None, "twice"),
    "tensors that overlap": (pack([], [tensor("a", (12,)), tensor("b", offset=32)], bytes(48)), TENSOR, None, "inside 'a'"),
    "tensor in the same place": (pack([], [tensor("a"), tensor("b")], bytes(48)), TENSOR, None, "inside"),
    "end of the descriptions missing": (pack([], [tensor("a")], counts=(2, 0)), TRUNCATED, None, ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name: str, tmp_path: Path) -> None:
    content, code, offset, message = HOSTILE[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(CompilerError) as caught:
            open_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    first = caught.value.diagnostics[0]
    assert first.code is code
    assert message in first.message
    assert first.where.file == str(path) and first.help
    assert offset is None or first.where.offset == offset
    assert peak < 200_000 + 4 * len(content)


def test_all_wrong_tensors_are_listed_together(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(pack([], [tensor("a", offset=3), tensor("b", offset=1 << 33), tensor("c", (3, 2), 77), tensor("d", kind=78)], bytes(64)))
    with pytest.raises(CompilerError) as caught:
        open_gguf(path)
    assert [d.where.tensor for d in caught.value.diagnostics] == ["c", "d"]  # without their sizes nothing is known of the others
    path.write_bytes(pack([], [tensor("a", offset=3), tensor("b", offset=1 << 33), tensor("c", offset=32)], bytes(64)))
    with pytest.raises(CompilerError) as caught:
        open_gguf(path)
    assert [(d.where.tensor, d.code) for d in caught.value.diagnostics] == [("a", TENSOR), ("b", TRUNCATED)]


# --- files of the reference library --------------------------------------------------------------------------------------

VALUES: dict[str, tuple[str, Any]] = {
    "u8": ("add_uint8", 200),
    "i8": ("add_int8", -3),
    "u16": ("add_uint16", 60000),
    "i16": ("add_int16", -30000),
    "u32": ("add_uint32", 4000000000),
    "i32": ("add_int32", -2000000000),
    "f32": ("add_float32", 0.375),
    "u64": ("add_uint64", (1 << 64) - 1),
    "i64": ("add_int64", -(1 << 63)),
    "f64": ("add_float64", 0.1),
    "yes": ("add_bool", True),
    "text": ("add_string", "süß 東京\n\0x"),
    "words": ("add_array", ["", "a", "Ġthe", "東京"]),
    "whole": ("add_array", [1, -2, 3]),
    "reals": ("add_array", [0.5, -1.25]),
    "flags": ("add_array", [True, False, True]),
}


def same(have: Any, want: Any) -> bool:
    if isinstance(want, list):
        return list(have) == want
    return type(have) is type(want) and have == want


def write(path: Path, tensors: dict[str, tuple[np.ndarray, Any]], **keys: int) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for name, (method, value) in VALUES.items():
        getattr(writer, method)(f"test.{name}", value)
    for name, value in keys.items():
        writer.add_uint32(f"general.{name}", value)
        writer.data_alignment = value
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def every_kind(seed: int = 0) -> dict[str, tuple[np.ndarray, Any]]:
    """A tensor of each type, of bytes that mean something or not."""
    rng = np.random.default_rng(seed)
    out: dict[str, tuple[np.ndarray, Any]] = {}
    for number, kind in KINDS.items():
        if kind.dtype is None:
            out[kind.name] = (rng.integers(0, 256, (3, 2 * kind.bytes), np.uint8), gguf.GGMLQuantizationType(number))
        elif kind.name == "BF16":
            out[kind.name] = (rng.integers(0, 256, (3, 10), np.uint8), gguf.GGMLQuantizationType.BF16)
        else:
            out[kind.name] = (rng.integers(-5, 5, (2, 3, 4)).astype(kind.dtype.numpy), None)
    return out


def test_the_types_are_those_of_the_reference_library() -> None:
    theirs = {t.value: (t.name, *sizes) for t, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {n: (k.name, k.elements, k.bytes) for n, k in KINDS.items()}
    assert {n: theirs[n] for n in ours if n in theirs} == {n: ours[n] for n in ours if n in theirs}
    assert set(theirs) <= set(ours)


@pytest.mark.parametrize("alignment", [32, 8, 4096])
def test_files_of_the_reference_library_are_read_exactly(alignment: int, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    tensors = every_kind()
    write(path, tensors, alignment=alignment)
    file = open_gguf(path)
    for name, (_, value) in VALUES.items():
        assert same(file.metadata[f"test.{name}"], value), name
    theirs = gguf.GGUFReader(path)
    assert list(file) == [t.name for t in theirs.tensors] == list(tensors)
    for t in theirs.tensors:
        mine = file[t.name]
        assert mine.begin == t.data_offset and mine.end - mine.begin == t.n_bytes
        assert list(mine.shape) == list(reversed(t.shape.tolist()))
        assert mine.blocks().tobytes() == t.data.tobytes()
        if mine.kind.dtype is not None:
            assert mine.array().tobytes() == t.data.tobytes() and not mine.array().flags.writeable
    with pytest.raises(ValueError, match="lies in blocks"):
        file["Q4_K"].array()


def test_texts_are_decoded_when_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    raw = [b"a", b"\xff\xfe", "東".encode(), b""]
    path.write_bytes(pack([key("k", 9, struct.pack("<IQ", 8, 4) + b"".join(map(text, raw)))], []))
    found = open_gguf(path).metadata["k"]
    assert isinstance(found, Texts)
    assert list(found) == ["a", "\ufffd\ufffd", "東", ""] and list(found[1:3]) == ["\ufffd\ufffd", "東"]
    assert [found.bytes(i) for i in range(4)] == raw
    path.write_bytes(pack([key("k", 9, struct.pack("<IQIQ", 9, 2, 4, 2) + struct.pack("<IIIQ", 7, 8, 8, 1) + text("x"))], []))
    numbers, words = open_gguf(path).metadata["k"]
    assert numbers.tolist() == [7, 8] and list(words) == ["x"]


def test_empty_tensors_and_scalars(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(pack([], [tensor("none", (4, 0)), tensor("one", ()), tensor("rows", (0, 3))], struct.pack("<f", 2.5)))
    file = open_gguf(path)
    assert file["none"].array().shape == (0, 4) and file["rows"].array().shape == (3, 0)
    assert file["one"].array().shape == () and file["one"].array() == 2.5


def test_the_map_outlives_the_file_object(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    big = np.arange(1 << 20, dtype=np.float32)
    write(path, {"a": (big, None)})
    tracemalloc.start()
    try:
        array = open_gguf(path)["a"].array()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 19
    gc.collect()
    np.testing.assert_array_equal(array, big)


# --- several files -------------------------------------------------------------------------------------------------------


def split(folder: Path, **wrong: Any) -> Path:
    """A model of three tensors in three files; ``wrong`` replaces what the second says."""
    for n in range(3):
        says = {"no": n, "count": 3, "total": 3, "name": f"t{n}"} | (wrong if n == 1 else {})
        keys = [key("split.no", 2, struct.pack("<H", says["no"])), key("split.count", 2, struct.pack("<H", says["count"]))]
        keys += [key("split.tensors.count", 5, struct.pack("<i", says["total"]))]
        content = pack([NAME, *keys], [tensor(says["name"])], struct.pack("<4f", n, n, n, n))
        (folder / f"m-{n + 1:05}-of-00003.gguf").write_bytes(content)
    return folder / "m-00001-of-00003.gguf"


def test_a_model_in_several_files(tmp_path: Path) -> None:
    file = open_gguf(split(tmp_path))
    assert list(file) == ["t0", "t1", "t2"] and [float(file[n].array()[0]) for n in file] == [0, 1, 2]
    assert file["t2"].where.file == str(tmp_path / "m-00003-of-00003.gguf")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"no": 2}, "number 1 of 3"), ({"count": 4}, "number 1 of 3"), ({"name": "t0"}, "as well")],
)
def test_files_that_do_not_belong_together(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CompilerError, match=message) as caught:
        open_gguf(split(tmp_path, **wrong))
    assert caught.value.diagnostics[0].code is SPLIT and "00002" in (caught.value.diagnostics[0].where.file or "")


def test_files_of_a_model_that_are_missing_or_taken_for_the_first(tmp_path: Path) -> None:
    first = split(tmp_path)
    with pytest.raises(CompilerError, match="not the first") as caught:
        open_gguf(tmp_path / "m-00002-of-00003.gguf")
    assert caught.value.diagnostics[0].help == "give 'm-00001-of-00003.gguf'"
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(first.read_bytes())
    with pytest.raises(CompilerError, match="first of 3 files"):
        open_gguf(renamed)
    for n in (2, 3):
        (tmp_path / f"m-0000{n}-of-00003.gguf").unlink()
    with pytest.raises(CompilerError) as caught:
        open_gguf(first)
    assert [d.code for d in caught.value.diagnostics] == [Code.FILE_NOT_FOUND] * 2
    split(tmp_path)
    third = tmp_path / "m-00003-of-00003.gguf"
    third.write_bytes(third.read_bytes()[:-1])
    with pytest.raises(CompilerError, match="'t2' ends"):
        open_gguf(first)


def test_the_number_of_tensors_of_all_files(tmp_path: Path) -> None:
    first = split(tmp_path)
    first.write_bytes(first.read_bytes().replace(struct.pack("<Ii", 5, 3), struct.pack("<Ii", 5, 4)))
    with pytest.raises(CompilerError, match="hold 3 tensors, not the 4"):
        open_gguf(first)


# --- mutations -----------------------------------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    words = key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 6) + b"".join(text(t) for t in ("a", "bc", "def", "", "Ġx", "東")))
    nested = key("n", 9, struct.pack("<IQIQ", 9, 2, 4, 2) + struct.pack("<IIIQ", 7, 8, 8, 1) + text("x"))
    numbers = [key(f"k{kind}", kind, bytes(size)) for kind, size in ((0, 1), (3, 2), (5, 4), (6, 4), (7, 1), (10, 8), (12, 8))]
    many = [tensor(f"blk.{n}.attn_q.weight", (32, 2), 2, 64 * n) for n in range(6)]
    return [GOOD, pack([NAME, words, nested, *numbers], many, bytes(384)), pack([words], [tensor("a", (4,), 0, 0)], bytes(16), version=2)]


def touch(file: GgufFile) -> None:
    """Reads everything that was accepted."""
    for value in file.metadata.values():
        list(value) if isinstance(value, (Texts, np.ndarray)) else repr(value)
    for t in file.values():
        assert t.blocks().nbytes == t.end - t.begin


def fuzz(folder: Path, rounds: int, seed: int) -> int:
    rng, files, accepted = random.Random(seed), seeds(), 0
    path = folder / "x.gguf"
    for _ in range(rounds):
        content = mutated(rng, rng.choice(files))
        path.write_bytes(content)
        began = time.monotonic()
        problems: list[Diagnostic] = []
        try:
            touch(open_gguf(path))
            accepted += 1
        except CompilerError as error:
            problems += error.diagnostics
        assert all(d.help and d.where.file for d in problems)
        assert time.monotonic() - began < 5
    return accepted


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    assert 0 < fuzz(tmp_path, 1_000, 1) < 1_000


@pytest.mark.long
def test_many_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    assert 0 < fuzz(tmp_path, 200_000, 2) < 200_000


def test_memory_is_bounded_by_the_file(tmp_path: Path) -> None:
    """Of the allocations of a parse: those of the worst file there can be for each byte, many short keys, and of large arrays."""
    short = pack([key(f"{n:x}", 0, b"\1") for n in range(20_000)], [])
    words = pack([key("k", 9, struct.pack("<IQ", 8, 200_000) + text("ab") * 200_000)], [])
    rows = pack([], [tensor(f"{n:x}", (0,)) for n in range(10_000)])
    path = tmp_path / "x.gguf"
    for content, times in ((short, 16), (words, 4), (rows, 24)):
        path.write_bytes(content)
        gc.collect()
        tracemalloc.start()
        try:
            file = open_gguf(path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 200_000 + times * len(content)
        assert file.path == path
