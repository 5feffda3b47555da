"""The metadata of a GGUF file: keys with typed values. Arrays are not built: numbers are views of the file, texts are decoded when they are asked
for, so what is held is bounded by what the file holds.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where

MAX_KEY = 65535  # bytes, by the specification
MAX_DEPTH = 4  # of arrays in arrays
TEXT, ARRAY, BOOL = 8, 9, 7

#: by the number of a type: the letter under which ``struct`` and numpy know it
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "B", 10: "Q", 11: "q", 12: "d"}
SMALLEST = {**{n: struct.calcsize(letter) for n, letter in SCALARS.items()}, TEXT: 8, ARRAY: 12}


class Texts(Sequence[str]):
    """An array of texts, decoded one by one; bytes that are not UTF-8 become U+FFFD."""

    def __init__(self, data: mmap.mmap, begins: np.ndarray) -> None:
        self._data = data
        self._begins = begins

    def __len__(self) -> int:
        return len(self._begins)

    def bytes(self, i: int) -> bytes:
        """The bytes of one text as they are in the file."""
        at = int(self._begins[i])
        (size,) = struct.unpack_from("<Q", self._data, at)
        return self._data[at + 8 : at + 8 + size]

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> Sequence[str]: ...

    def __getitem__(self, i: int | slice) -> str | Sequence[str]:
        if isinstance(i, slice):
            return Texts(self._data, self._begins[i])
        return self.bytes(i).decode("utf-8", "replace")


#: ``np.ndarray`` has one axis; a tuple holds arrays
Value = bool | int | float | str | np.ndarray | Texts | tuple["Value", ...]


@dataclass
class Reader:
    """The bytes of a mapped file from ``at`` on. Whatever does not fit raises ``CompilerError`` with the byte at which it stands."""

    data: mmap.mmap
    place: str
    at: int = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def error(self, message: str, at: int, code: Code = Code.GGUF_METADATA) -> CompilerError:
        return CompilerError.of(code, message, Where(file=self.place, offset=at), HELP)

    def take(self, size: int, what: str) -> int:
        """Where so many bytes begin; they are passed over."""
        if size > self.left:
            message = f"{what} has {size} bytes, the file {self.left} more"
            raise CompilerError.of(Code.GGUF_TRUNCATED, message, Where(file=self.place, offset=self.at), TRUNCATED_HELP)
        at = self.at
        self.at += size
        return at

    def number(self, letter: str, what: str) -> int | float:
        """One scalar."""
        at = self.take(struct.calcsize(f"<{letter}"), what)
        value: int | float = struct.unpack_from(f"<{letter}", self.data, at)[0]
        return value

    def whole(self, letter: str, what: str) -> int:
        return int(self.number(letter, what))

    def text(self, what: str, most: int | None = None) -> str:
        """A text that has to be UTF-8."""
        begin = self.at
        size = self.whole("Q", f"the length of {what}")
        if most is not None and size > most:
            raise self.error(f"{what} has {size} bytes, more than {most}", begin)
        at = self.take(size, what)
        try:
            return self.data[at : at + size].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8", at + error.start) from None

    def value(self, kind: int, what: str, depth: int = 0) -> Value:
        """A value of the type with that number."""
        if kind == TEXT:
            return self.text(what)
        if kind == BOOL:
            if (flag := self.whole("B", what)) > 1:
                raise self.error(f"{what} is {flag}, neither false nor true", self.at - 1)
            return bool(flag)
        if kind in SCALARS:
            return self.number(SCALARS[kind], what)
        if kind != ARRAY:
            raise self.error(f"{what} has the unknown type {kind}", self.at)
        if depth == MAX_DEPTH:
            raise self.error(f"{what} has arrays in arrays beyond a depth of {MAX_DEPTH}", self.at)
        return self.array(what, depth)

    def array(self, what: str, depth: int) -> Value:
        begin = self.at
        kind, count = self.whole("I", f"the type of {what}"), self.whole("Q", f"the length of {what}")
        if kind not in SMALLEST:
            raise self.error(f"{what} is an array of the unknown type {kind}", begin)
        if count * SMALLEST[kind] > self.left:
            message = f"{what} is said to have {count} elements, the file has {self.left} more bytes"
            raise CompilerError.of(Code.GGUF_TRUNCATED, message, Where(file=self.place, offset=begin + 4), TRUNCATED_HELP)
        if kind in SCALARS:
            at = self.take(count * SMALLEST[kind], what)
            found = np.frombuffer(self.data, f"<{SCALARS[kind]}", count, at) if count else np.zeros(0, f"<{SCALARS[kind]}")
            if kind == BOOL:
                if count and found.max() > 1:
                    raise self.error(f"an element of {what} is neither false nor true", at + int(found.argmax()))
                found = found.view(np.bool_)
            return found
        if kind == TEXT:
            return Texts(self.data, self.texts(count, what))
        return tuple(self.value(ARRAY, what, depth + 1) for _ in range(count))

    def texts(self, count: int, what: str) -> np.ndarray:
        """``i64[count]``: where each of so many texts begins, with its length. They are passed over."""
        begins = np.empty(count, np.int64)
        at, end, length = self.at, len(self.data), struct.Struct("<Q")
        for i in range(count):
            begins[i] = at
            behind = at + 8 if at + 8 > end else at + 8 + length.unpack_from(self.data, at)[0]
            if behind > end:
                message = f"text {i} of {what} reaches to byte {behind}, the file ends at byte {end}"
                raise CompilerError.of(Code.GGUF_TRUNCATED, message, Where(file=self.place, offset=at), TRUNCATED_HELP)
            at = behind
        self.at = at
        return begins


HELP = "download the file again, or write it anew: it is not as the GGUF specification says"
TRUNCATED_HELP = "the download or the copy was cut off: fetch the file again"
