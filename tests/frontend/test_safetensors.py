"""The safetensors reader: files of the reference library are read exactly, hostile ones are refused with a code, a place and little memory."""

from __future__ import annotations

import gc
import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from trustformers_ir.frontend import safetensors
from trustformers_ir.frontend.safetensors import open_safetensors
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dtypes import DType

HEADER, TRUNCATED, OFFSETS, DTYPE = (
    Code.SAFETENSORS_HEADER,
    Code.SAFETENSORS_TRUNCATED,
    Code.SAFETENSORS_OFFSETS,
    Code.SAFETENSORS_DTYPE,
)


def pack(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header (JSON, or text as it is)."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


GOOD = pack({"a": tensor(), "b": tensor("I8", (2, 2), (4, 8))}, bytes(8))
B = GOOD.index(b'"b"')
FOUR = bytes(4)

# name: (bytes, code, byte offset, part of the message)
HOSTILE: dict[str, tuple[bytes, Code, int | None, str]] = {
    "empty": (b"", TRUNCATED, 0, "0 bytes"),
    "seven bytes": (b"\x02" + bytes(6), TRUNCATED, 7, "7 bytes"),
    "header cut off": (GOOD[:40], TRUNCATED, 0, "ends at byte 40"),
    "data cut off": (GOOD[:-1], TRUNCATED, B, "1 of 2 tensors"),
    "no data": (GOOD[:-8], TRUNCATED, B, "2 of 2 tensors"),
    "overlong header": (pack("{}", length=1 << 40), HEADER, 0, "more than the"),
    "header of all ones": (pack("{}", length=(1 << 64) - 1), HEADER, 0, "more than the"),
    "header beyond the file": (pack("{}", length=1000), TRUNCATED, 0, "the file ends at"),
    "header of length zero": (pack("", length=0), HEADER, 0, "too few"),
    "header of length one": (pack("{"), HEADER, 0, "too few"),
    "header ends too early": (pack({"a": tensor()}, FOUR, length=30), HEADER, 38, "expected"),
    "not JSON": (pack("hello world"), HEADER, 8, "does not begin"),
    "a list": (pack("[]"), HEADER, 8, "does not begin"),
    "blank before": (pack(" {}"), HEADER, 8, "does not begin"),
    "garbage after": (pack('{"a":1}'[:1] + "}x"), HEADER, 10, "something follows"),
    "two objects": (pack("{}{}"), HEADER, 10, "something follows"),
    "trailing comma": (pack('{"a":' + json.dumps(tensor()) + ",}", FOUR), HEADER, None, "expected a string"),
    "nested lists": (pack('{"a":{"dtype":"F32","shape":' + "[" * 100_000, FOUR), HEADER, 37, "whole number"),
    "nested objects": (pack('{"a":' * 50_000), HEADER, 14, "is unknown"),
    "nested metadata": (pack('{"__metadata__":{"a":{"b":"c"}}}'), HEADER, 29, "expected a string"),
    "number in metadata": (pack('{"__metadata__":{"a":1}}'), HEADER, 29, "expected a string"),
    "metadata twice": (pack('{"__metadata__":{},"__metadata__":{}}'), HEADER, 27, "twice"),
    "key of metadata twice": (pack('{"__metadata__":{"a":"","a":""}}'), HEADER, 32, "twice"),
    "duplicate name": (pack('{"a":%s,"a":%s}' % ((json.dumps(tensor()),) * 2), FOUR), HEADER, 68, "the name 'a' occurs twice"),
    "duplicate name, escaped": (pack('{"a":%s,"\\u0061":%s}' % ((json.dumps(tensor()),) * 2), FOUR), HEADER, 68, "occurs twice"),
    "duplicate field": (pack('{"a":{"dtype":"F32","dtype":"F32"}}'), HEADER, 28, "'dtype' of tensor 'a' occurs twice"),
    "unknown field": (pack({"a": tensor(strides=[1])}, FOUR), HEADER, None, "'strides' of tensor 'a' is unknown"),
    "field missing": (pack({"a": {"dtype": "F32", "shape": [1]}}, FOUR), HEADER, 9, "no data_offsets"),
    "all fields missing": (pack({"a": {}}), HEADER, 9, "no dtype and no shape and no data_offsets"),
    "tensor is a number": (pack('{"a":5}'), HEADER, 13, "expected '{'"),
    "negative size": (pack({"a": tensor(shape=[-1])}, FOUR), HEADER, None, "whole number"),
    "fractional size": (pack({"a": tensor(shape=[1.0])}, FOUR), HEADER, None, "whole number"),
    "exponent": (pack('{"a":{"dtype":"F32","shape":[1e2],"data_offsets":[0,4]}}', FOUR), HEADER, 37, "whole number"),
    "infinite size": (pack('{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}', FOUR), HEADER, 37, "whole number"),
    "leading zeros": (pack('{"a":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}}', FOUR), HEADER, None, "expected"),
    "size as text": (pack({"a": tensor(shape=["1"])}, FOUR), HEADER, None, "whole number"),
    "huge size": (pack({"a": tensor(shape=[1 << 63])}, FOUR), HEADER, None, "whole number"),
    "huge digits": (pack('{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % ("9" * 100_000), FOUR), HEADER, 37, "whole number"),
    "product overflows": (pack({"a": tensor(shape=[1 << 62, 1 << 62, 4])}, FOUR), OFFSETS, 9, "needs"),
    "product wraps to the span": (pack({"a": tensor("U8", [1 << 32, 1 << 32], (0, 0))}), OFFSETS, 9, "needs 18446744073709551616"),
    "too many axes": (pack({"a": tensor(shape=[1] * 33)}, FOUR), HEADER, None, "more than 32"),
    "shape is missing an element": (pack({"a": tensor(shape=[2])}, FOUR), OFFSETS, 9, "needs 8"),
    "three offsets": (pack({"a": tensor(offsets=[0, 4, 8])}, FOUR), HEADER, None, "more than 2"),
    "one offset": (pack({"a": tensor(offsets=[4])}, FOUR), HEADER, 9, "1 numbers, not 2"),
    "negative offsets": (pack({"a": tensor(offsets=[-4, 0])}, FOUR), HEADER, None, "whole number"),
    "backward offsets": (pack({"a": tensor(offsets=[4, 0])}, FOUR), OFFSETS, 9, "before they begin"),
    "overlap": (pack({"a": tensor(), "b": tensor("U8", (4,), (2, 6))}, bytes(6)), OFFSETS, None, "overlap those of 'a'"),
    "same span twice": (pack({"a": tensor(), "b": tensor()}, FOUR), OFFSETS, None, "overlap"),
    "hole": (pack({"a": tensor(), "b": tensor(offsets=(8, 12))}, bytes(12)), OFFSETS, None, "4 .. 8 of the data"),
    "hole at the beginning": (pack({"a": tensor(offsets=(4, 8))}, bytes(8)), OFFSETS, 9, "0 .. 4 of the data"),
    "bytes at the end": (pack({"a": tensor()}, bytes(5)), OFFSETS, 73, "last 1 bytes"),
    "data without tensors": (pack({}, FOUR), OFFSETS, 10, "last 4 bytes"),
    "unknown dtype": (pack({"a": tensor("Q4")}, FOUR), DTYPE, 9, "'Q4' is no dtype"),
    "dtype in lower case": (pack({"a": tensor("f32")}, FOUR), DTYPE, 9, "'f32' is no dtype"),
    "dtype of another width": (pack({"a": tensor("F64")}, FOUR), OFFSETS, 9, "needs 8"),
    "unsupported dtype": (pack({"a": tensor("F8_E4M3", (4,))}, FOUR), DTYPE, 9, "not supported yet"),
    "dtype is a number": (pack('{"a":{"dtype":4}}'), HEADER, 22, "expected a string"),
    "not UTF-8": (pack(b'{"\xff":1}'), HEADER, 9, "UTF-8"),
    "overlong UTF-8": (pack(b'{"\xc0\xaf":1}'), HEADER, 9, "UTF-8"),
    "UTF-16": (pack('{"a":1}'.encode("utf-16")), HEADER, 8, "does not begin"),
    "lone surrogate": (pack('{"\\ud800":{}}'), HEADER, 9, "cannot be printed"),
    "control character": (pack(b'{"a\x01":{}}'), HEADER, 9, "not valid JSON"),
    "escaped control character": (pack('{"a\\u0000":{}}'), HEADER, 9, "cannot be printed"),
    "line break in a name": (pack('{"a\\nb":{}}'), HEADER, 9, "cannot be printed"),
    "bidirectional override": (pack('{"a\\u202eb":{}}'), HEADER, 9, "cannot be printed"),
    "empty name": (pack({"": tensor()}, FOUR), HEADER, 9, "is no name"),
    "long name": (pack({"a" * 5000: tensor()}, FOUR), HEADER, 9, "longer than"),
    "name without end": (pack('{"' + "a" * 100), HEADER, 9, "does not end"),
    "quotes and backslashes": (pack('{"' + '\\"' * 2000 + "\\"), HEADER, 9, "string"),
    "bad escape": (pack('{"\\x":1}'), HEADER, 9, "not valid JSON"),
    "single quotes": (pack("{'a':1}"), HEADER, 9, "expected a string"),
    "comment": (pack("{/* */}"), HEADER, 9, "expected a string"),
    "an archive": (b"PK\x03\x04" + bytes(60), TRUNCATED, 0, "the file ends"),
    "a pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(60), HEADER, 0, "more than the"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", HEADER, 0, "more than the"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name: str, tmp_path: Path) -> None:
    content, code, offset, text = HOSTILE[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(CompilerError) as caught:
            open_safetensors(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    first = caught.value.diagnostics[0]
    assert first.code is code
    assert text in first.message
    assert first.where.file == str(path) and first.where.offset is not None
    assert offset is None or first.where.offset == offset
    assert peak < 200_000 + 20 * len(content)
    assert first.help


def test_there_are_enough_of_them() -> None:
    assert len(HOSTILE) >= 60


def test_all_wrong_spans_are_listed_together(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack({"a": tensor("X"), "b": tensor(shape=(2,)), "c": tensor(offsets=(9, 2)), "d": tensor()}, FOUR))
    with pytest.raises(CompilerError) as caught:
        open_safetensors(path)
    assert [d.where.tensor for d in caught.value.diagnostics] == ["a", "b", "c", "c"][: len(caught.value.diagnostics)]
    assert len(caught.value.diagnostics) >= 3
    path.write_bytes(pack({f"t{i}": tensor("X") for i in range(1000)}, FOUR))
    with pytest.raises(CompilerError) as caught:
        open_safetensors(path)
    assert len(caught.value.diagnostics) == safetensors.MAX_REPORTED


def test_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "MAX_TENSORS", 10)
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack({f"t{i}": tensor(shape=(0,), offsets=(0, 0)) for i in range(11)}))
    with pytest.raises(CompilerError, match="more than 10 tensors"):
        open_safetensors(path)


def test_only_ordinary_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(CompilerError) as caught:
            open_safetensors(path)
        assert caught.value.codes == (Code.UNREADABLE,)
    with pytest.raises(CompilerError) as caught:
        open_safetensors(tmp_path / "absent")
    assert caught.value.codes == (Code.FILE_NOT_FOUND,)
    with pytest.raises(CompilerError):
        open_safetensors("a\0b")


def test_files_of_the_reference_library(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        f"{dtype}.{'x'.join(map(str, shape)) or 'scalar'}": random.integers(0, 2, shape).astype(DType.parse(dtype).numpy)
        for dtype in ("bool", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "f16", "bf16", "f32", "f64")
        for shape in ((), (3,), (2, 5), (0, 4), (2, 1, 3))
    }
    arrays["größe.γ 重み"] = np.ones(3, np.float32)
    path = tmp_path / "x.safetensors"
    save_file(arrays, path, {"format": "np", "note": 'with "quotes", \\ and\nbreaks'})
    file = open_safetensors(path)
    assert set(file) == set(arrays) and len(file) == len(arrays)
    assert file.metadata == {"format": "np", "note": 'with "quotes", \\ and\nbreaks'}
    for name, want in arrays.items():
        have = file.array(name)
        assert (have.dtype == want.dtype and have.shape == want.shape and not have.flags.writeable) or not have.size
        np.testing.assert_array_equal(have.astype(np.float64), want.astype(np.float64))
    assert file.array("bf16.2x5").dtype == ml_dtypes.bfloat16


def test_tensors_are_views_that_outlive_the_file_object(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    big = np.arange(1 << 20, dtype=np.float32)
    save_file({"a": big}, path)
    tracemalloc.start()
    try:
        array = open_safetensors(path).array("a")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 19
    assert not array.flags.owndata
    gc.collect()
    np.testing.assert_array_equal(array, big)


def test_odd_but_valid_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack("{}"))
    assert not open_safetensors(path)
    path.write_bytes(
        pack(
            '{ "a" :\t{"data_offsets": [1, 5] ,"shape":[ ],"dtype":"F32"},\n"b":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}  ',
            b"\x07" + struct.pack("<f", 2.5),
        )
    )
    file = open_safetensors(path)
    assert file.array("a") == 2.5 and file.array("b").tolist() == [True]
    path.write_bytes(pack({"a": tensor("C64", (1,), (0, 8))}, np.complex64(1 + 2j).tobytes()))
    assert open_safetensors(path).array("a")[0] == 1 + 2j


def test_many_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"model.layers.{i}.mlp.weight": np.zeros(2, np.float16) for i in range(20_000)}, path)
    assert len(open_safetensors(path)) == 20_000
