"""The code section of an artifact for a GPU: a plan that is data, machine code, and the text that it was made from; written, and read with checks.

    header (32 bytes) | plan (JSON) | text (UTF-8) | machine code of each kernel, at multiples of 64

The header is ``\\x89TFG\\r\\n\\x1a\\n``, the version and 0 as u32, the bytes of the plan and of the text as u64, all little-endian. The plan is the
kernels and functions of ``ir/device.py`` by the rules of ``records.py``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trustformers_ir.ir.abi import Entry, Manifest
from trustformers_ir.ir.device import (
    ARENA,
    DEVICE_VERSION,
    INPUT,
    OUTPUT,
    WEIGHT,
    DeviceBuffer,
    DeviceCode,
    DeviceFunction,
    DeviceKernel,
    DeviceModule,
)
from trustformers_ir.ir.dims import Dim, symbols_of
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.runtime.memory import aligned
from trustformers_ir.runtime.records import Broken, canonical, decoded, encoded, fail, fields_of, parsed, shown

RULES = {
    "G1": "the code begins as code for GPUs does, its parts fill it, the plan is JSON of exactly the fields of ir/device.py",
    "G2": "kernels have different names, which are identifiers; their buffers are of known dtypes, their symbols are the module's",
    "G3": "machine code follows the text at multiples of 64, zeros between, and fills the code; each kernel has as many variants as there are",
    "G4": "there is a plan for each entry, in order; its launches name kernels that there are, with the buffers and pieces of memory that these take",
    "G5": "buffers are inputs, outputs or weights that there are, or lie in the arena; expressions mention only dims of the inputs",
    "G6": "warps are from 1 to 64, sizes are not negative, index_bits is 32 of narrow code and 64 of wide",
}
MAGIC = b"\x89TFG\r\n\x1a\n"
_HEAD = struct.Struct("<8sIIQQ")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}\Z")
_MAX_WARPS, _MAX_RESERVED, _MAX_SIZE = 64, 8, 1 << 40


@dataclass(frozen=True)
class _Plan:
    """What stands in the file as JSON."""

    kernels: tuple[DeviceKernel, ...]
    functions: tuple[DeviceFunction, ...]


def encode(module: DeviceModule, codes: Mapping[str, Sequence[bytes]]) -> bytes:
    """The bytes of the section. ``codes`` has the machine code of each kernel by its name, narrow first; the places in the module are filled in."""
    text = module.text.encode()
    kernels, end = module.kernels, 0
    functions = encoded(module.functions, tuple[DeviceFunction, ...])  # the same in each turn, and most of it
    while True:  # the plan tells where code lies, and its length where code begins
        plan = canonical({"functions": functions, "kernels": encoded(kernels, tuple[DeviceKernel, ...])})
        begin = aligned(_HEAD.size + len(plan) + len(text))
        if begin == end:
            break
        kernels, end = _placed(module.kernels, codes, begin), begin
    out = bytearray(_HEAD.pack(MAGIC, DEVICE_VERSION, 0, len(plan), len(text)) + plan + text)
    for code in (c for k in module.kernels for c in codes.get(k.name, ())):
        out += bytes(aligned(len(out)) - len(out)) + code
    return bytes(out)


def _placed(kernels: Sequence[DeviceKernel], codes: Mapping[str, Sequence[bytes]], begin: int) -> tuple[DeviceKernel, ...]:
    """The kernels with the places of their code, which begins at byte ``begin``."""
    out: list[DeviceKernel] = []
    for k in kernels:
        spans: list[DeviceCode | None] = []
        for binary, code in zip((k.narrow, k.wide), [*codes.get(k.name, ()), b"", b""], strict=False):
            spans.append(None if binary is None else replace(binary, offset=begin, length=len(code)))
            begin = aligned(begin + len(code)) if binary is not None else begin
        out.append(replace(k, narrow=spans[0], wide=spans[1]))
    return tuple(out)


def decode(code: bytes, manifest: Manifest) -> DeviceModule:
    """The module in a section, checked by the rules. ``Broken``."""
    if code[:8] != MAGIC or len(code) < _HEAD.size:
        fail("G1", "it does not begin as code for a GPU does")
    _, version, reserved, plan_bytes, text_bytes = _HEAD.unpack_from(code)
    if version != DEVICE_VERSION or reserved:
        fail("G1", f"it has version {version}, this runtime reads version {DEVICE_VERSION}")
    end = _HEAD.size + plan_bytes + text_bytes
    if end > len(code):
        fail("G1", f"plan and text are said to have {plan_bytes} and {text_bytes} bytes, the code has {len(code)}")
    try:
        document = fields_of(parsed(code[_HEAD.size : _HEAD.size + plan_bytes]), {"kernels", "functions"}, "the plan")
        plan: _Plan = decoded(document, _Plan, "plan")
        text = code[_HEAD.size + plan_bytes : end].decode("utf-8")
    except Broken as error:
        raise Broken("G1", error.message, _HEAD.size + error.offset) from None
    except UnicodeDecodeError as error:
        raise Broken("G1", "the text is not UTF-8", _HEAD.size + plan_bytes + error.start) from None
    _check_kernels(plan.kernels, manifest)
    _check_places(plan.kernels, code, end)
    names, entries = [f.name for f in plan.functions], [e.name for e in manifest.entries]
    if names != entries:
        fail("G4", f"there are plans for {', '.join(map(shown, names))[:200]}, and entries {', '.join(map(shown, entries))[:200]}")
    for function, entry in zip(plan.functions, manifest.entries, strict=True):
        _check_function(function, entry, plan.kernels, manifest)
    return DeviceModule(plan.kernels, plan.functions, text)


def code_of(code: bytes, binary: DeviceCode) -> bytes:
    """The machine code of a kernel in the section."""
    return code[binary.offset : binary.offset + binary.length]


def _check_kernels(kernels: Sequence[DeviceKernel], manifest: Manifest) -> None:
    declared = {name for name, _ in manifest.symbols}
    seen: set[str] = set()
    for k in kernels:
        if not _NAME.match(k.name) or k.name in seen:
            fail("G2", f"{shown(k.name)} is no name of a kernel, or that of two")
        if not _NAME.match(k.symbol):
            fail("G2", f"{shown(k.symbol)} is no name of a function")
        seen.add(k.name)
        for dtype in (*k.buffers, *(m.dtype for m in k.memory)):
            if dtype not in DType.__members__:
                fail("G2", f"kernel {k.name} has a buffer of {shown(dtype)}")
        if not set(k.symbols) <= declared or len(set(k.symbols)) != len(k.symbols):
            fail("G2", f"kernel {k.name} takes dims that there are not: {', '.join(map(shown, k.symbols))[:200]}")
        if k.checks not in (0, 1):
            fail("G2", f"kernel {k.name} checks {k.checks} indices; it does or does not")
        for binary, bits in ((k.narrow, 32), (k.wide, 64)):
            if binary is not None:
                _check_binary(binary, bits, k.name)


def _check_binary(b: DeviceCode, bits: int, name: str) -> None:
    sizes = (b.shared, b.registers, b.spilled, b.reserved, b.work)
    good = 1 <= b.warps <= _MAX_WARPS and all(0 <= n <= _MAX_SIZE for n in sizes) and b.reserved <= _MAX_RESERVED and b.index_bits == bits
    if not good or not 1 <= b.work_alignment <= 4096 or (b.work and not b.reserved):
        fail("G6", f"the code of kernel {name} wants what cannot be: {b}")


def _check_places(kernels: Sequence[DeviceKernel], code: bytes, end: int) -> None:
    """Machine code lies where the writer puts it, and nothing else does. Code for the interpreter is the text alone."""
    binaries = [b for k in kernels for b in (k.narrow, k.wide) if b is not None]
    for b in binaries:
        if b.offset != aligned(end) or b.length < 1 or b.length > len(code) - b.offset or any(code[end : b.offset]):
            fail("G3", f"machine code has {b.length} bytes at byte {b.offset}, after a part that ends at {end} of {len(code)}")
        end = b.offset + b.length
    if end != len(code):
        fail("G3", f"the last part ends at byte {end} of {len(code)}")
    if any((k.narrow is None) != (not binaries) or (k.wide is not None and k.narrow is None) for k in kernels):
        fail("G3", "some kernels have machine code, and others have none")


def _check_function(function: DeviceFunction, entry: Entry, kernels: Sequence[DeviceKernel], manifest: Manifest) -> None:
    bound = {name for name, fact in manifest.symbols if fact.low == fact.high}.union(*(p.type.symbols for p in entry.inputs))
    counts = {INPUT: len(entry.inputs), OUTPUT: len(entry.outputs), WEIGHT: len(manifest.weights), ARENA: 1}

    def known(dim: Dim, what: str) -> None:
        unknown = sorted(symbols_of(dim) - bound)
        if unknown:
            fail("G5", f"{what} of entry {shown(entry.name)} mentions {', '.join(unknown)[:200]}, of which nothing is known")

    known(function.arena_bytes, "the arena")
    for n, launch in enumerate(function.launches):
        what = f"launch {n}"
        if not 0 <= launch.kernel < len(kernels):
            fail("G4", f"{what} of entry {shown(entry.name)} is of kernel {launch.kernel}, of {len(kernels)}")
        kernel = kernels[launch.kernel]
        if len(launch.buffers) != len(kernel.buffers) or len(launch.memory) != len(kernel.memory):
            fail("G4", f"{what} of entry {shown(entry.name)} has {len(launch.buffers)} buffers, kernel {kernel.name} takes {len(kernel.buffers)}")
        unbound = sorted(set(kernel.symbols) - bound)
        if unbound:
            fail("G5", f"{what} of entry {shown(entry.name)} needs the dim {unbound[0]}, which no input has")
        for dim in (launch.programs, launch.work, *launch.memory, *(c.size for c in launch.conditions)):
            known(dim, what)
        for b in launch.buffers:
            _check_buffer(b, counts, what)
            known(b.offset, what)
            known(b.bytes, what)


def _check_buffer(b: DeviceBuffer, counts: Mapping[str, int], what: str) -> None:
    if not 0 <= b.number < counts.get(b.storage, 0):
        fail("G5", f"{what} names {shown(b.storage)} {b.number}, of {counts.get(b.storage, 0)}")
    if b.storage != ARENA and b.offset != 0:
        fail("G5", f"{what} begins inside {b.storage} {b.number}")
