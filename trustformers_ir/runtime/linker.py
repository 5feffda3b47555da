"""Links object files (``elf.py``) into this process: places their sections in memory, and writes into them the addresses that they ask for.

The image is three runs of pages: code, which can then be executed; constants, which can then only be read, the table of addresses (GOT) among
them; and data. Addresses have 64 bits everywhere, as the large code model has them, so it does not matter how far the functions of the C library are.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trustformers_ir.runtime.elf import (
    ABSOLUTE,
    FIELD,
    R_GOT64,
    R_GOTOFF64,
    R_GOTPC64,
    R_PC64,
    UNDEFINED,
    BadObject,
    Group,
    ObjectFile,
    Section,
    read_object,
)
from trustformers_ir.runtime.pages import EXECUTE, READ, Pages

GOT = "_GLOBAL_OFFSET_TABLE_"
LIBRARIES = (None, "libm.so.6")  # where functions are looked for: in what the process has loaded, and in this


@dataclass(frozen=True)
class Image:
    """Linked code, and where the symbols lie that were asked for."""

    pages: Pages
    addresses: dict[str, int]


def link_objects(objects: Sequence[bytes | memoryview], symbols: Sequence[str]) -> Image:
    """Links the objects. Nothing of them is executed. ``BadObject`` when that cannot be, ``UnknownForm`` when another linker may be
    able to, ``OSError`` when the system gives no memory for code."""
    return _Link([read_object(image) for image in objects]).image(symbols)


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


class _Link:
    def __init__(self, objects: Sequence[ObjectFile]) -> None:
        self.objects = objects
        self.places: dict[Section, int] = {}  # bytes from the start of the image
        self.ends: dict[Group, tuple[int, int]] = {}
        self.slots: list[dict[int, int]] = []  # of each object: the symbols whose addresses have to be in the table, and where in it
        self._lay_out()

    def _lay_out(self) -> None:
        at = 0
        for group in Group:
            begin = at = _aligned(at, mmap.PAGESIZE)
            for section in (s for o in self.objects for s in o.sections.values() if s.group is group):
                at = _aligned(at, section.alignment)
                self.places[section] = at
                at += section.size
            if group is Group.CONSTANT:
                self.table = at = _aligned(at, FIELD)
                for o in self.objects:
                    wanted = [s.relocations["symbol"][s.relocations["kind"] == R_GOT64] for s in o.sections.values()]
                    numbers = sorted({int(x) for found in wanted for x in found})
                    self.slots.append({symbol: at - self.table + FIELD * n for n, symbol in enumerate(numbers)})
                    at += FIELD * len(numbers)
            self.ends[group] = begin, at
        self.size = at

    def image(self, symbols: Sequence[str]) -> Image:
        pages = Pages(self.size)
        try:
            addresses = self._place(pages)
            missing = [s for s in symbols if s not in addresses]
            if missing:
                raise BadObject(f"symbols not found: {', '.join(missing)}")
            for group, access in ((Group.CODE, EXECUTE), (Group.CONSTANT, READ)):
                begin, end = self.ends[group]
                pages.protect(begin, _aligned(end, mmap.PAGESIZE) - begin, access)
        except BaseException:
            pages.unmap()
            raise
        return Image(pages, {s: addresses[s] for s in symbols})

    def _place(self, pages: Pages) -> dict[str, int]:
        """Writes everything into the pages; the addresses of the symbols that the objects define for each other."""
        bases = [{number: pages.address + self.places[s] for number, s in o.sections.items()} for o in self.objects]
        defined = self._definitions(bases)
        table = pages.address + self.table
        for o, base, wanted in zip(self.objects, bases, self.slots, strict=True):
            found = self._addresses(o, base, {**defined, GOT: table})
            slots = np.zeros(len(found), np.uint64)
            for symbol, slot in wanted.items():
                slots[symbol] = slot
                pages.write(self.table + slot, found[symbol : symbol + 1].view(np.uint8))
            for section in o.sections.values():
                if section.content is not None and section.size:
                    pages.write(self.places[section], _relocated(section, pages.address + self.places[section], table, found, slots))
        return defined

    def _definitions(self, bases: Sequence[dict[int, int]]) -> dict[str, int]:
        found: dict[str, int] = {}
        strong: set[str] = set()
        for o, base in zip(self.objects, bases, strict=True):
            for number, name in o.names.items():
                symbol = o.symbols[number]
                start = 0 if symbol["section"] == ABSOLUTE else base.get(int(symbol["section"]))
                if start is None or (number in o.weak and name in found):
                    continue
                if number not in o.weak and name in strong:
                    raise BadObject(f"'{name}' is defined twice")
                strong |= {name} if number not in o.weak else set()
                found[name] = (start + int(symbol["value"])) % (1 << 64)
        return found

    def _addresses(self, o: ObjectFile, base: dict[int, int], defined: dict[str, int]) -> np.ndarray:
        """``u64[symbols]``: where each symbol of an object lies, as far as its relocations ask for it."""
        used = np.zeros(len(o.symbols), bool)
        for section in o.sections.values():
            used[section.relocations["symbol"][section.relocations["kind"] != R_GOTPC64]] = True  # that one asks for the table alone
        found = np.zeros(len(o.symbols), np.uint64)
        for number in map(int, np.flatnonzero(used)):
            symbol = o.symbols[number]
            place, name = int(symbol["section"]), o.names.get(number)
            if name is not None and name in defined:
                found[number] = defined[name]
            elif place in base:
                found[number] = (base[place] + int(symbol["value"])) % (1 << 64)
            elif place == ABSOLUTE:
                found[number] = symbol["value"]
            elif place != UNDEFINED:
                raise BadObject("it needs the address of something that is no part of the program")
            elif name is not None:
                address = process_symbol(name)
                if address is None and number not in o.weak:
                    raise BadObject(f"symbols not found: {name}")
                found[number] = address or 0
        return found


def _relocated(section: Section, base: int, table: int, addresses: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """The content of a section that lies at ``base``, with addresses where it asks for them. Sums are modulo 2**64."""
    assert section.content is not None
    rows = section.relocations
    if not len(rows):
        return section.content
    kinds, symbols, places = rows["kind"], rows["symbol"], rows["offset"] + np.uint64(base)
    values = rows["addend"] + np.where(kinds == R_GOT64, slots[symbols], np.where(kinds == R_GOTPC64, np.uint64(table), addresses[symbols]))
    values -= np.where(kinds == R_GOTOFF64, np.uint64(table), np.where((kinds == R_PC64) | (kinds == R_GOTPC64), places, np.uint64(0)))
    content = section.content.copy()
    fields = rows["offset"].astype(np.int64)[:, None] + np.arange(FIELD)
    content[fields] = values.astype("<u8").view(np.uint8).reshape(-1, FIELD)
    return content


@functools.cache
def _libraries() -> list[ctypes.CDLL]:
    found = []
    for name in LIBRARIES:
        with contextlib.suppress(OSError):  # not every C library is cut into these files
            found.append(ctypes.CDLL(name))
    return found


def process_symbol(name: str) -> int | None:
    """The address of a function that the process has loaded, or of the C library; None when there is none of that name."""
    for library in _libraries():
        with contextlib.suppress(AttributeError):
            return ctypes.cast(library[name], ctypes.c_void_p).value
    return None
