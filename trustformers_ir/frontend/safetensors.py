"""Reads ``*.safetensors`` by mapping them: every tensor is a view of the file, and nothing in the file is trusted before it is checked. Parts of a
file are mapped while somebody looks at them: a model may be larger than the memory, or than the addresses that a process may have.

The format (github.com/huggingface/safetensors): eight bytes with the length of the header, little endian; the header, a JSON object; the data.

    {"__metadata__": {"format": "pt"}, "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}

Offsets count from the end of the header. A file is accepted only when the header is exactly of that form, no name occurs twice, every span
has the size that dtype and shape imply, and the spans cover the data without overlaps and holes. The header has its own parser: a general
one would build whatever the file says before anybody could object, and could not tell the byte at which the objection lies.
"""

from __future__ import annotations

import functools
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NoReturn

import numpy as np

from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.mapped import OpenFile
from trustformers_ir.ir.types import TensorType

MAX_HEADER = 100_000_000  # bytes; the cap of the reference implementation
MAX_TENSORS = 250_000
MAX_NAME = 4096  # bytes of a name as it is written
MAX_TEXT = 16_000_000  # bytes of one value of __metadata__
MAX_RANK = 32
MAX_REPORTED = 50
PART = 64 << 20  # bytes of neighbouring tensors that are mapped together: a model of many small ones needs few maps

DTYPES: dict[str, DType] = {
    "BOOL": DType.bool,
    "I8": DType.i8,
    "I16": DType.i16,
    "I32": DType.i32,
    "I64": DType.i64,
    "U8": DType.u8,
    "U16": DType.u16,
    "U32": DType.u32,
    "U64": DType.u64,
    "F16": DType.f16,
    "BF16": DType.bf16,
    "F32": DType.f32,
    "F64": DType.f64,
    "C64": DType.c64,
}
"""The dtypes of the format that have a counterpart here."""

UNSUPPORTED = {"F8_E5M2", "F8_E4M3", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4"}
"""The other dtypes of the format."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its type and its bytes, ``begin .. end`` counted from the start of the file."""

    name: str
    type: TensorType
    begin: int
    end: int


class SafetensorsFile(Mapping[str, Entry]):
    """A file that has been checked and is open. What is mapped of it goes away with the last view of it."""

    def __init__(self, path: Path, data: OpenFile, entries: dict[str, Entry], metadata: dict[str, str]) -> None:
        self.path = path
        self.metadata = metadata
        self._data = data
        self._entries = entries
        self._parts = _parts(entries.values())

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def array(self, name: str) -> np.ndarray:
        """The tensor as a read-only view of the file. Booleans that are neither 0 nor 1 are normalised, in a copy."""
        entry = self._entries[name]
        shape, dtype = entry.type.concrete({}), entry.type.dtype
        if not prod(shape):
            return np.zeros(shape, dtype.numpy)
        begin, end = self._parts[name]
        data, at = self._data.part(begin, end)
        at += entry.begin - begin
        if dtype is DType.bool:
            stored = np.frombuffer(data, np.uint8, prod(shape), at)
            return (stored.view(np.bool_) if stored.max() <= 1 else stored != 0).reshape(shape)
        return np.frombuffer(data, dtype.numpy, prod(shape), at).reshape(shape)


def _parts(entries: Iterable[Entry]) -> dict[str, tuple[int, int]]:
    """The part of the file, begin and end, in which each tensor is mapped: neighbours share one as long as it is no larger than ``PART``."""
    found: dict[str, tuple[int, int]] = {}
    together: list[Entry] = []
    for entry in sorted((e for e in entries if e.end > e.begin), key=lambda e: e.begin):
        if together and entry.end - together[0].begin > PART:
            found |= dict.fromkeys((e.name for e in together), (together[0].begin, together[-1].end))
            together = []
        together.append(entry)
    if together:
        found |= dict.fromkeys((e.name for e in together), (together[0].begin, together[-1].end))
    return found


def open_safetensors(path: str | Path, shown: str | None = None) -> SafetensorsFile:
    """The checked file. Raises ``CompilerError`` with all that is wrong, each with its byte offset. ``shown`` names the file in messages."""
    path = Path(path)
    place = shown or str(path)
    data = OpenFile(path, place, ".safetensors", 8, functools.partial(_short, place))
    size = data.size
    length = _header_length(data, size, place)
    header = data.read(8, 8 + length)
    try:
        rows, metadata = _Header(header).parse()
    except _Broken as error:
        where = Where(file=place, offset=8 + error.offset)
        raise CompilerError.of(Code.SAFETENSORS_HEADER, f"the header is broken: {error}", where, _HELP) from None
    problems = Collector()
    entries = _checked(rows, 8 + length, size, place, problems)
    problems.check()
    return SafetensorsFile(path, data, entries, metadata)


_HELP = "download or export the file again; it was not written by the safetensors library"
_TRUNCATED_HELP = "the download or the copy was cut off: fetch the file again"


def _short(place: str, size: int) -> CompilerError:
    message = f"the file has {size} bytes, too few for the length of a header"
    return CompilerError.of(Code.SAFETENSORS_TRUNCATED, message, Where(file=place, offset=size), _TRUNCATED_HELP)


def _header_length(data: OpenFile, size: int, place: str) -> int:
    (length,) = struct.unpack("<Q", data.read(0, 8))
    if length > MAX_HEADER:
        message = f"the header is said to have {length} bytes, more than the {MAX_HEADER} that are allowed"
        raise CompilerError.of(Code.SAFETENSORS_HEADER, message, Where(file=place, offset=0), _HELP)
    if length < 2:
        message = f"the header is said to have {length} bytes, too few for a JSON object"
        raise CompilerError.of(Code.SAFETENSORS_HEADER, message, Where(file=place, offset=0), _HELP)
    if 8 + length > size:
        message = f"the header reaches to byte {8 + length}, the file ends at byte {size}"
        raise CompilerError.of(Code.SAFETENSORS_TRUNCATED, message, Where(file=place, offset=0), _TRUNCATED_HELP)
    return int(length)


# --- the header --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """What the header says of one tensor; ``at`` is where its name stands in the header."""

    name: str
    at: int
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _Broken(Exception):
    """The header is not of the prescribed form at ``offset``, counted from its start."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


_BLANKS = re.compile(rb"[ \t\r\n]*")
_SIZE = re.compile(rb"(?:0|[1-9][0-9]{0,18})(?![0-9.eE])")


class _Header:
    """A parser of exactly the JSON that the format prescribes."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.at = 0

    def parse(self) -> tuple[list[_Row], dict[str, str]]:
        if self.text[:1] != b"{":
            self.fail("it does not begin with '{'")
        rows: list[_Row] = []
        metadata: dict[str, str] | None = None
        names: set[str] = set()
        for name, start in self.members(MAX_NAME):
            if name == "__metadata__":
                if metadata is not None:
                    self.fail("'__metadata__' occurs twice", start)
                metadata = self.texts()
                continue
            if name in names:
                self.fail(f"the name '{_cut(name)}' occurs twice", start)
            if not name or not name.isprintable():
                self.fail(f"'{_cut(name)}' is no name: it is empty or has characters that cannot be printed", start)
            if len(names) == MAX_TENSORS:
                self.fail(f"there are more than {MAX_TENSORS} tensors", start)
            names.add(name)
            rows.append(self.tensor(name, start))
        self.skip()
        if self.at != len(self.text):
            self.fail("something follows the closing '}'")
        return rows, metadata or {}

    def tensor(self, name: str, start: int) -> _Row:
        dtype: str | None = None
        shape: tuple[int, ...] | None = None
        span: tuple[int, ...] | None = None
        for key, at in self.members(MAX_NAME):
            if key == "dtype" and dtype is None:
                dtype = self.string(MAX_NAME)
            elif key == "shape" and shape is None:
                shape = self.sizes(MAX_RANK)
            elif key == "data_offsets" and span is None:
                span = self.sizes(2)
            else:
                known = key in ("dtype", "shape", "data_offsets")
                self.fail(f"the field '{_cut(key)}' of tensor '{_cut(name)}' {'occurs twice' if known else 'is unknown'}", at)
        if dtype is None or shape is None or span is None:
            missing = [f for f, v in (("dtype", dtype), ("shape", shape), ("data_offsets", span)) if v is None]
            self.fail(f"tensor '{_cut(name)}' has no {' and no '.join(missing)}", start)
        if len(span) != 2:
            self.fail(f"the data_offsets of tensor '{_cut(name)}' are {len(span)} numbers, not 2", start)
        return _Row(name, start, dtype, shape, *span)

    def texts(self) -> dict[str, str]:
        """An object whose values are strings."""
        out: dict[str, str] = {}
        for key, at in self.members(MAX_NAME):
            if key in out:
                self.fail(f"the key '{_cut(key)}' of __metadata__ occurs twice", at)
            out[key] = self.string(MAX_TEXT)
        return out

    def members(self, longest: int) -> Iterator[tuple[str, int]]:
        """The keys of an object and where they stand; the caller reads each value before asking for the next key."""
        self.expect(b"{")
        if self.peek() == b"}":
            self.at += 1
            return
        while True:
            self.skip()
            start = self.at
            key = self.string(longest)
            self.expect(b":")
            yield key, start
            if self.peek() == b"}":
                self.at += 1
                return
            self.expect(b",")

    def sizes(self, most: int) -> tuple[int, ...]:
        """A list of at most ``most`` whole numbers that are not negative."""
        start = self.at
        self.expect(b"[")
        out: list[int] = []
        if self.peek() == b"]":
            self.at += 1
            return ()
        while True:
            self.skip()
            found = _SIZE.match(self.text, self.at)
            if found is None or int(found[0]) >= 1 << 63:
                self.fail("expected a whole number in 0 .. 2**63 - 1")
            if len(out) == most:
                self.fail(f"a list of more than {most} numbers", start)
            out.append(int(found[0]))
            self.at = found.end()
            if self.peek() == b"]":
                self.at += 1
                return tuple(out)
            self.expect(b",")

    def string(self, longest: int) -> str:
        self.skip()
        start = self.at
        if self.text[start : start + 1] != b'"':
            self.fail("expected a string")
        at, limit = start + 1, min(len(self.text), start + 1 + longest)
        while True:
            at = self.text.find(b'"', at, limit)
            if at < 0:
                self.fail("a string does not end" if limit == len(self.text) else f"a string is longer than {longest} bytes", start)
            slashes = 0
            while self.text[at - 1 - slashes] == 0x5C:
                slashes += 1
            if slashes % 2 == 0:
                break
            at += 1
        try:
            value = json.loads(self.text[start : at + 1].decode("utf-8"))
        except ValueError:  # also UnicodeDecodeError
            self.fail("a string is not valid JSON in UTF-8", start)
        self.at = at + 1
        assert isinstance(value, str)
        return value

    def skip(self) -> None:
        found = _BLANKS.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def peek(self) -> bytes:
        self.skip()
        return self.text[self.at : self.at + 1]

    def expect(self, token: bytes) -> None:
        if self.peek() != token:
            found = self.text[self.at : self.at + 1].decode("latin-1") or "the end"
            self.fail(f"expected '{token.decode()}', found {found!r}")
        self.at += 1

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        raise _Broken(message, self.at if at is None else at)


def _cut(name: str) -> str:
    return name if len(name) <= 80 else name[:80] + "…"


# --- the spans ---------------------------------------------------------------------------------------------------------------------


def _checked(rows: list[_Row], base: int, size: int, place: str, problems: Collector) -> dict[str, Entry]:
    """The entries, or reports of all that is wrong with them."""
    entries: dict[str, Entry] = {}
    room = size - base

    def report(code: Code, message: str, row: _Row, help: str = _HELP) -> None:
        if len(problems) < MAX_REPORTED:
            problems.add(code, message, Where(file=place, tensor=_cut(row.name), offset=8 + row.at), help)

    for row in rows:
        dtype = DTYPES.get(row.dtype)
        if dtype is None:
            known = row.dtype in UNSUPPORTED
            message = f"the dtype {row.dtype} is not supported yet" if known else f"'{_cut(row.dtype)}' is no dtype of the format"
            report(Code.SAFETENSORS_DTYPE, message, row, f"supported are {', '.join(DTYPES)}")
            continue
        needed = prod(row.shape) * dtype.itemsize
        if row.end < row.begin:
            report(Code.SAFETENSORS_OFFSETS, f"its bytes end at {row.end}, before they begin at {row.begin}", row)
        elif row.end - row.begin != needed:
            message = f"its bytes {row.begin} .. {row.end} are {row.end - row.begin}, {row.dtype}{list(row.shape)} needs {needed}"
            report(Code.SAFETENSORS_OFFSETS, message, row)
        elif prod(d for d in row.shape if d) * dtype.itemsize >= 1 << 63:
            report(Code.SAFETENSORS_OFFSETS, f"there is no array of the shape {list(row.shape)}, not even an empty one", row)
        else:
            entries[row.name] = Entry(row.name, TensorType(row.shape, dtype), base + row.begin, base + row.end)
    beyond = [row for row in rows if row.end > room]
    if beyond:
        last = max(beyond, key=lambda row: row.end)
        message = f"the data reaches to byte {base + last.end}, the file ends at byte {size}; {len(beyond)} of {len(rows)} tensors are not whole"
        report(Code.SAFETENSORS_TRUNCATED, message, last, _TRUNCATED_HELP)
    if not problems:
        _check_cover(rows, base, room, place, problems, report)
    return entries


def _check_cover(rows: list[_Row], base: int, room: int, place: str, problems: Collector, report: Callable[[Code, str, _Row], None]) -> None:
    """The spans follow each other from the first byte of the data to its last."""
    at = 0
    before: _Row | None = None
    for row in sorted(rows, key=lambda r: (r.begin, r.end)):
        if row.begin < at and before is not None:
            report(Code.SAFETENSORS_OFFSETS, f"its bytes from {row.begin} overlap those of '{_cut(before.name)}', which end at {at}", row)
        elif row.begin > at:
            report(Code.SAFETENSORS_OFFSETS, f"the bytes {at} .. {row.begin} of the data before it belong to no tensor", row)
        if row.end >= at:
            at, before = row.end, row
    if at < room and not problems:
        where = Where(file=place, offset=base + at)
        problems.add(Code.SAFETENSORS_OFFSETS, f"the last {room - at} bytes of the file belong to no tensor", where, _HELP)
