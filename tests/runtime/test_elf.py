"""Object files of unknown origin: each contradiction is found, and whatever is in the bytes, linking ends without a crash."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_harness import encoder
from test_linker import NAMES, everything, pytestmark  # noqa: F401

from trustformers_ir.ir.abi import POOL_SYMBOLS
from trustformers_ir.runtime import elf
from trustformers_ir.runtime.elf import ALLOC, EXECUTE, NOBITS, PROGBITS, R_64, RELA, SYMTAB, TLS, WRITE, BadObject, UnknownForm, read_object
from trustformers_ir.runtime.linker import link_objects

Change = Callable[["Parts"], None]


class Parts:
    """An object file with its tables in reach: a change to a field is a change to the file."""

    def __init__(self, image: bytes) -> None:
        self.image = np.frombuffer(bytearray(image), np.uint8)
        self.header = self.image[:64].view(elf._HEADER)
        at, count = int(self.header["shoff"][0]), int(self.header["shnum"][0])
        self.sections = self.image[at : at + 64 * count].view(elf._SECTION)
        self.symbols = self.table(SYMTAB, elf._SYMBOL)
        self.relocations = self.table(RELA, elf._RELOCATION)

    def table(self, type: int, row: Any) -> np.ndarray:
        """The rows of the first section of a type."""
        s = self.sections[self.sections["type"] == type][0]
        return self.image[int(s["offset"]) : int(s["offset"] + s["size"])].view(row)

    def numbers(self, **wanted: int) -> list[int]:
        """The sections with these values, but for the first."""
        return [n for n, s in enumerate(self.sections) if n and all(s[k] == v for k, v in wanted.items())]

    def of_code(self) -> Any:
        """The section with the code that relocations are for."""
        return self.sections[self.sections[self.numbers(type=RELA)[0]]["info"]]


def setting(part: str, field: str, value: int, row: int | None = None) -> Change:
    """One field of a row of a table (of the first that has no name in it: all rows)."""

    def change(p: Parts) -> None:
        getattr(p, part)[field][slice(None) if row is None else row] = value

    return change


def of_type(type: int, field: str, value: int) -> Change:
    def change(p: Parts) -> None:
        p.sections[field][p.numbers(type=type)[0]] = value

    return change


def code(field: str, value: int) -> Change:
    def change(p: Parts) -> None:
        p.sections[field][p.sections[p.numbers(type=RELA)[0]]["info"]] = value

    return change


def second_table(p: Parts) -> None:
    p.sections["type"][p.numbers(type=PROGBITS)[0]] = SYMTAB


def name_without_end(p: Parts) -> None:
    s = p.sections[p.sections[p.numbers(type=SYMTAB)[0]]["link"]]
    p.image[int(s["offset"]) + int(s["size"]) - 1] = 65
    p.symbols["name"][-1] = s["size"] - 1


def foreign_name(p: Parts) -> None:
    s = p.sections[p.sections[p.numbers(type=SYMTAB)[0]]["link"]]
    p.image[int(s["offset"]) + int(p.symbols["name"][-1])] = 0xE4


def much_zero(p: Parts) -> None:
    p.sections["size"][p.numbers(type=NOBITS)[0]] = 1 << 40


def relocated_zeros(p: Parts) -> None:
    p.sections["info"][p.numbers(type=RELA)[0]] = p.numbers(type=NOBITS)[0]


def relocated_twice(p: Parts) -> None:
    one, two = p.numbers(type=RELA)[:2]
    p.sections["info"][two] = p.sections["info"][one]


def symbol_of_a_note(p: Parts) -> None:
    """Relocations ask for a symbol in a section that is not in memory."""
    p.relocations["kind"] = R_64
    p.symbols["section"][p.relocations["symbol"][0]] = p.numbers(flags=0, type=PROGBITS)[0]
    p.symbols["value"][p.relocations["symbol"][0]] = 0
    p.symbols["info"][p.relocations["symbol"][0]] = 0


BIG = [1 << 31, (1 << 32) - 1]
HUGE = [1 << 63, (1 << 64) - 1, (1 << 64) - 8]
BAD: dict[str, tuple[Change, str]] = {
    "no magic": (setting("image", "", 0), "no ELF file"),
    "another version": (setting("header", "version2", 2), "no ELF file"),
    "a program": (setting("header", "type", 2), "of type 2"),
    "small sections": (setting("header", "shentsize", 40), "table of sections"),
    "no sections": (setting("header", "shnum", 0), "table of sections"),
    "too many sections": (setting("header", "shnum", 60000), "table of sections"),
    **{f"sections at {n}": (setting("header", "shoff", n), "table of sections") for n in (1 << 20, *BIG, *HUGE)},
    "names nowhere": (setting("header", "shstrndx", 60000), "is no table of names"),
    "names in the code": (setting("header", "shstrndx", 3), "is no table of names"),
    "no empty section": (setting("sections", "type", PROGBITS, 0), "not the empty one"),
    **{f"code at {n}": (code("offset", n), "is not in the file") for n in (1 << 20, *BIG, *HUGE)},
    **{f"code of {n}": (code("size", n), "longer than the file") for n in (1 << 20, *BIG, *HUGE)},
    "code that is written": (code("flags", ALLOC | WRITE | EXECUTE), "written and executed"),
    "no power of two": (code("alignment", 24), "aligned to 24"),
    "short code": (code("size", 7), "a relocation is not in"),
    "a name of a section": (setting("sections", "name", (1 << 32) - 1, 3), "does not end"),
    "much zero": (much_zero, "bytes of zeros"),
    "relocated zeros": (relocated_zeros, "a relocation is not in"),
    "relocated twice": (relocated_twice, "are those of no section"),
    "relocations of nothing": (of_type(RELA, "info", 60000), "are those of no section"),
    "relocations of no symbols": (of_type(RELA, "link", 1), "or of none of the symbols"),
    "half a relocation": (of_type(RELA, "size", 25), "no whole number of rows"),
    "rows of another size": (of_type(RELA, "entry", 16), "no whole number of rows"),
    **{f"relocation at {n}": (setting("relocations", "offset", n, -1), "a relocation is not in") for n in (1 << 20, *BIG, *HUGE)},
    "relocation of a strange kind": (setting("relocations", "kind", 43, 0), "of kind 43"),
    **{f"relocation of symbol {n}": (setting("relocations", "symbol", n, 0), "a symbol that is not there") for n in (1000, *BIG)},
    "two tables of symbols": (second_table, "several tables"),
    "half a symbol": (of_type(SYMTAB, "size", 25), "no whole number of rows"),
    "no names": (of_type(SYMTAB, "link", 0), "is no table of names"),
    "a name that does not end": (name_without_end, "does not end"),
    "a name outside": (setting("symbols", "name", 1 << 20, -1), "does not end"),
    "a name in German": (foreign_name, "not in ASCII"),
    "a symbol in no section": (setting("symbols", "section", 60000, -1), "not there"),
    **{f"a symbol at {n}": (setting("symbols", "value", n, 2), "outside of section") for n in (1 << 20, *BIG, *HUGE)},
    "a symbol of what is not in memory": (symbol_of_a_note, "no part of the program"),
}
UNKNOWN: dict[str, tuple[Change, str]] = {
    "32 bits": (setting("header", "class", 1), "for machine 62"),
    "big endian": (setting("header", "order", 2), "for machine 62"),
    "another machine": (setting("header", "machine", 183), "for machine 183"),
    "a relocation of 32 bits": (setting("relocations", "kind", 2, 0), "of kind 2"),
    "constructors": (code("type", 14), "of type 14"),
    "of each thread": (code("flags", ALLOC | WRITE | TLS), "with flags"),
    "wide alignment": (code("alignment", 8192), "aligned to 8192"),
    "a binding of one system": (setting("symbols", "info", 0xA2, -1), "of binding 10"),
    "chosen when loaded": (setting("symbols", "info", 0x1A, -1), "of type 10"),
    "common": (setting("symbols", "section", 0xFFF2, -1), "no section of its own"),
}


def broken(change: Change) -> bytes:
    parts = Parts(everything())
    if change is BAD["no magic"][0]:
        parts.image[0] = 0
    else:
        change(parts)
    return parts.image.tobytes()


@pytest.mark.parametrize("name", BAD)
def test_contradictions(name: str) -> None:
    change, message = BAD[name]
    with pytest.raises(BadObject, match=message):
        link_objects([broken(change)], NAMES)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_another_linker_may_know(name: str) -> None:
    change, message = UNKNOWN[name]
    with pytest.raises(UnknownForm, match=message):
        link_objects([broken(change)], NAMES)


def test_every_length() -> None:
    """An object that was cut anywhere is refused: its table of sections is the last thing in it."""
    whole = everything()
    for length in range(0, len(whole), 7):
        with pytest.raises(BadObject):
            read_object(whole[:length])
    read_object(whole + bytes(1000))


def test_many_sections_and_names_take_no_longer_than_reading_them() -> None:
    """Sections that all claim the same bytes, and names that are all the longest, are refused before anybody works through them."""
    count = 60_000
    head = np.zeros(1, elf._HEADER)
    head["magic"] = np.frombuffer(b"\x7fELF", "V4")
    for field, value in {"class": 2, "order": 1, "version": 1, "version2": 1, "type": 1, "machine": 62, "shoff": 64, "shentsize": 64}.items():
        head[field] = value
    head["shnum"] = count
    sections = np.zeros(count, elf._SECTION)
    sections["type"][1:], sections["flags"][1:] = PROGBITS, ALLOC
    sections["size"][1:] = 1 << 20
    started = time.process_time()
    with pytest.raises(BadObject, match="longer than the file"):
        read_object(head.tobytes() + sections.tobytes())
    sections["size"] = 0
    sections["type"][1] = elf.STRTAB
    sections["flags"][1] = 0
    sections["size"][1], sections["offset"][1] = count * 64, 64
    sections["name"] = 16
    head["shstrndx"] = 1
    read_object(head.tobytes() + sections.tobytes())
    assert time.process_time() - started < 5


# --- anything at all ----------------------------------------------------------------------------------------------------------------------


@functools.cache
def objects() -> list[tuple[bytes, list[str]]]:
    """Whole objects, and what to ask of them."""
    m = encoder()
    return [(everything(), NAMES), (m.code, [*POOL_SYMBOLS, *(e.symbol for e in m.manifest.entries)])]


def pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0])


def links(image: bytes, symbols: list[str]) -> bool:
    """Whether an object links. Nothing of it is executed."""
    try:
        image_of = link_objects([image], symbols)
    except (BadObject, UnknownForm):
        return False
    assert all(isinstance(a, int) and 0 <= a < 1 << 64 for a in image_of.addresses.values())
    image_of.pages.unmap()
    return True


def interesting(draw: st.DrawFn, old: int, bits: int) -> int:
    """A number that a field of so many bits may have: an edge, one near the old one, or any."""
    top = (1 << bits) - 1
    edges = st.sampled_from([0, 1, 2, 7, 8, 255, 4096, 1 << 16, 1 << 20, 1 << 31, top >> 1, (top >> 1) + 1, top - 7, top - 1, top])
    return draw(st.one_of(edges, st.integers(-9, 9).map(lambda d: old + d), st.integers(0, top))) & top


@st.composite
def mutated(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """An object with some fields of its tables changed, some bytes, or an end that is missing."""
    image, symbols = draw(st.sampled_from(objects()))
    parts = Parts(image)
    for _ in range(draw(st.integers(1, 4))):
        table = getattr(parts, draw(st.sampled_from(["header", "sections", "sections", "symbols", "relocations", "image"])))
        row = draw(st.integers(0, len(table) - 1))
        if table is parts.image:
            table[row] = draw(st.integers(0, 255))
            continue
        field = draw(st.sampled_from([n for n in table.dtype.names if table.dtype[n].kind == "u"]))
        table[field][row] = interesting(draw, int(table[field][row]), 8 * table.dtype[field].itemsize)
    out = parts.image.tobytes()
    return out[: draw(st.integers(0, len(out)))] if draw(st.integers(0, 19)) == 0 else out, symbols


def check_mutations(count: int) -> None:
    found = []

    @settings(max_examples=count, deadline=10_000, suppress_health_check=list(HealthCheck))
    @given(mutated())
    def check(case: tuple[bytes, list[str]]) -> None:
        found.append(links(*case))

    check()
    assert count // 10 < sum(found) < len(found) - count // 10  # it is worth while: some are good, some are not


def test_mutated_objects_are_refused_or_linked() -> None:
    check_mutations(1000)


@pytest.mark.long
def test_many_mutated_objects_are_refused_or_linked() -> None:
    check_mutations(10_000)


@settings(max_examples=500, deadline=10_000, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=600), st.integers(0, 64))
def test_any_bytes(tail: bytes, kept: int) -> None:
    links(everything()[:kept] + tail, NAMES)


@pytest.mark.long
def test_every_byte_of_an_object() -> None:
    """Each byte of the tables, set to several values, one after the other; at the end no memory is left over."""
    before = pages()
    good = 0
    for image, symbols in objects():
        whole = np.frombuffer(bytearray(image), np.uint8)
        parts = Parts(image)
        tables = [s for s in parts.sections if s["type"] in (SYMTAB, RELA, elf.STRTAB)]
        ranges = [(0, 64), (int(parts.header["shoff"][0]), len(image)), *((int(s["offset"]), int(s["offset"] + s["size"])) for s in tables)]
        for at in sorted({n for begin, end in ranges for n in range(begin, end)}):
            old = whole[at]
            for value in {0, 1, 0x7F, 0x80, 0xFF, int(old) ^ 1, int(old) ^ 0x10} - {int(old)}:
                whole[at] = value
                good += links(whole.tobytes(), symbols)
            whole[at] = old
    assert good > 1000  # what does not matter for linking, addends among it
    assert pages() - before < 4096
