"""A compiled module as a shared library with a C header: what runs it needs no Python, no LLVM and no compiler.

    write(family, "out/libminilm.so", makers)      out/libminilm.so, out/minilm.h, out/libminilm.weights

The kernels are the object code of the module. What stands around them (sizes, checks, sessions) is ``c/library.c`` with tables of the model,
compiled and linked by the system's C compiler. The code of several targets lies side by side, each under names of its own. The same module and the
same C compiler give the same bytes. ``docs/c_api.md`` describes the interface.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shlex
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trustformers_ir.ir import env
from trustformers_ir.ir.abi import ABI_VERSION, COMPUTED_KEY, POOL_SYMBOLS, CompiledModule, Manifest, StoredWeight
from trustformers_ir.ir.atomic import atomic_output, check_writable, write_text
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, InternalError, Where
from trustformers_ir.ir.progress import note
from trustformers_ir.runtime import c_header
from trustformers_ir.runtime.c_tables import Tables, port_problem, text
from trustformers_ir.runtime.manifest import joined_weights
from trustformers_ir.runtime.memory import section_bytes, weight_bytes

MAGIC = b"\x89TFW\r\n\x1a\n"
WEIGHTS_VERSION = 1
WEIGHTS_HEADER = 4096
C_ABI = 3  # the calling convention that c/library.c follows
_PREFIXES = ("tfi", "tfir", "tfm", "pthread", *"frwx")  # of functions that are there already; R_OK and its like are macros of <unistd.h>
_PARTS = ("cpus.h", "sha256.h")  # files that library.c includes as they are
LARGEST_EMBEDDED = 1 << 30  # code reaches what it reads with 32 bits
_HEAD = struct.Struct("<8sIIQ32s")  # magic, version, bytes of the header, bytes of the weights, their SHA-256
_FLAGS = ("-std=c99", "-O2", "-w", "-fPIC", "-fvisibility=hidden", "-pthread")
# Start files are for constructors, of which there are none. Libraries that nothing needs are not asked for.
_LINK = (
    *("-shared", "-nostartfiles", "-pthread", "-Wl,--build-id=none", "-Wl,-s", "-Wl,-z,defs", "-Wl,-z,noexecstack", "-Wl,-z,relro,-z,now"),
    *("-Wl,--version-script=exports.map", "-Wl,--as-needed"),
)


def library_name(path: str | os.PathLike[str]) -> str:
    """The prefix of a library's functions, from its file name: ``libminilm.so`` gives ``minilm``."""
    stem = Path(path).name.removesuffix(".so").removeprefix("lib")
    return c_header.identifiers([stem.lower() or "model"], _PREFIXES)[0]


def write(
    family: Sequence[CompiledModule],
    path: str | os.PathLike[str],
    weights: Mapping[str, Callable[[], np.ndarray]],
    embed_weights: bool = False,
    alone_below: int = 0,
) -> None:
    """Writes the library ``path`` (``*.so``), the header beside it and, unless ``embed_weights``, the file of the weights, each whole or not at all.
    Calls of fewer than ``alone_below`` flops and bytes stay on the calling thread.

    ``MISSING_DEPENDENCY`` where there is no C compiler; ``UNSUPPORTED_DTYPE``, ``UNSUPPORTED_SHAPE`` or ``TARGET_UNAVAILABLE`` for what has no
    place in C; ``TOO_LARGE`` for more weights than a library can hold.
    """
    target = Path(path)
    check_writable(target)
    manifests = [m.manifest for m in family]
    _check(manifests)
    name = library_name(target)
    stored = joined_weights(manifests)
    size = section_bytes(stored)
    if embed_weights and size > LARGEST_EMBEDDED:
        message = f"{size} bytes of weights do not fit into a library"
        raise CompilerError.of(Code.TOO_LARGE, message, Where(file=os.fspath(path)), "leave them in a file beside it")
    find_compiler()  # before anything is written
    beside = target.with_suffix(".weights")
    with tempfile.TemporaryDirectory(prefix="tfir-") as folder:
        work = Path(folder)
        if embed_weights:
            with (work / "weights.bin").open("w+b") as stream:
                head = _head(size, _write_section(stream, 0, stored, weights))
        else:
            with atomic_output(beside) as stream:
                head = _head(size, _write_section(stream, WEIGHTS_HEADER, stored, weights))
                stream.seek(0)
                stream.write(head.ljust(WEIGHTS_HEADER, b"\0"))
        header = _build(work, family, name, target.name, None if embed_weights else beside.name, head, alone_below)
        write_text(target.with_name(f"{name}.h"), header)
        with atomic_output(target) as out, (work / "library.so").open("rb") as made:
            shutil.copyfileobj(made, out)


def find_compiler() -> list[str]:
    """The command of the C compiler: ``CC``, or ``cc``. ``MISSING_DEPENDENCY`` when it is not there."""
    command = shlex.split(env.CC.get())
    if not command or shutil.which(command[0]) is None:
        message = f"there is no C compiler: '{command[0] if command else ''}' is not installed"
        raise CompilerError.of(Code.MISSING_DEPENDENCY, message, help="on Debian and Ubuntu: apt-get install gcc libc6-dev; or name one with CC=")
    return command


def _check(manifests: Sequence[Manifest]) -> None:
    if manifests[0].abi != C_ABI or ABI_VERSION != C_ABI:
        raise InternalError.of(Code.INTERNAL, f"c/library.c follows version {C_ABI} of the calling convention, the code version {manifests[0].abi}")
    with Collector() as problems:
        if COMPUTED_KEY in manifests[0].metadata:
            message = "the sizes of outputs are computed by the call, which libraries do not have yet"
            problems.add(Code.NOT_BUILT, message, help="save a .tfc file")
        for entry in without_states(manifests[0]).entries:
            for port in (*entry.inputs, *entry.outputs):
                problem = port_problem(port)
                if problem is not None:
                    problems.extend(problem.diagnostics)
        for m in manifests:
            if not m.target.triple.startswith("x86_64-") or "linux" not in m.target.triple:
                message = f"shared libraries are made for x86-64 Linux; the code is for {m.target.triple}"
                problems.add(Code.TARGET_UNAVAILABLE, message, help="save a .tfc file")


def _head(size: int, digest: bytes) -> bytes:
    return _HEAD.pack(MAGIC, WEIGHTS_VERSION, WEIGHTS_HEADER, size, digest)


def _write_section(stream: BinaryIO, base: int, stored: Sequence[StoredWeight], makers: Mapping[str, Callable[[], np.ndarray]]) -> bytes:
    """Writes the weights, one after the other, each at its place; gives the SHA-256 of the whole section, gaps included."""
    digest = hashlib.sha256()
    end = 0
    for done, w in enumerate(stored):
        note("writing weights", done, len(stored))
        data = weight_bytes(w, makers[w.name])
        digest.update(bytes(w.offset - end))
        stream.seek(base + w.offset)
        stream.write(data.data)
        digest.update(data.data)
        end = w.offset + w.bytes
    return digest.digest()


def _symbol(several: bool, n: int, plain: str) -> str:
    """The name, in a library, of what the object code of variant n calls ``plain``."""
    return f"tfi_v{n}_{plain}" if several else plain


def sources(manifests: Sequence[Manifest], name: str, weights_file: str | None, head: bytes, alone_below: int) -> dict[str, str]:
    """The C files of a library, by name: ``library.c`` includes the others. ``weights_file``: None for weights in the library; ``head``: the
    first bytes of the weights' file."""
    symbol = functools.partial(_symbol, len(manifests) > 1)
    tables = Tables(manifests, symbol)
    header = c_header.header(manifests[0], name, [m.target.name for m in manifests], weights_file, tables.max_rank)
    size = section_bytes(joined_weights(manifests))
    about = tables.write(
        {
            "TFI_ALONE_BELOW": alone_below,
            "TFI_EMBEDDED": int(weights_file is None),
            "TFI_WEIGHTS_FILE": text(weights_file or ""),
            "TFI_WEIGHTS_HEADER": WEIGHTS_HEADER,
            "TFI_WEIGHTS_BYTES": f"{size}u" if size < 1 << 32 else f"{size}ul",
        }
    )
    for what, data in (("header", head), ("digest", head[-32:])):
        about += f"static const uint8_t tfi_weights_{what}[] = {{{', '.join(map(str, data))}}};\n"
    return {
        "header.h": header,
        "tables.h": c_header.named(about, name),
        "typed.h": c_header.named(c_header.typed(manifests[0]), name),
        **{part: (c_header.TEMPLATES / part).read_text() for part in _PARTS},
        "library.c": c_header.named((c_header.TEMPLATES / "library.c").read_text(), name),
        "exports.map": f"{{ global: {name}_*; local: *; }};\n",
    }


def without_states(manifest: Manifest) -> Manifest:
    """The manifest without entries whose inputs a call writes to: C takes inputs as they are. ``UNSUPPORTED_SHAPE`` where none is left."""
    plain = tuple(e for e in manifest.entries if not e.states)
    if not plain:
        message = f"'{manifest.name}' has no function without states, which libraries do not have yet"
        raise CompilerError.of(Code.UNSUPPORTED_SHAPE, message, help="save a .tfc file")
    return replace(manifest, entries=plain)


def _build(
    work: Path, family: Sequence[CompiledModule], name: str, library: str, weights_file: str | None, head: bytes, alone_below: int
) -> str:
    """Compiles and links ``work/library.so``; gives the text of the header."""
    compiler = find_compiler()
    files = sources([without_states(m.manifest) for m in family], name, weights_file, head, alone_below)
    for file, content in files.items():
        (work / file).write_text(content)
    objects = ["library.o"]
    note("compiling C")
    _run([*compiler, *_FLAGS, "-c", "library.c", "-o", "library.o"], work)
    for n, module in enumerate(family):
        objects.append(f"code{n}.o")
        (work / objects[-1]).write_bytes(module.code)
        if len(family) > 1:
            _rename(work, n, module.manifest)
    if weights_file is None:
        (work / "weights.S").write_text(_EMBEDDED)
        _run([*compiler, "-c", "weights.S", "-o", "weights.o"], work)
        objects.append("weights.o")
    note("linking")
    _run([*compiler, *_LINK, f"-Wl,-soname,{library}", "-o", "library.so", *objects, "-lm", "-ldl"], work)
    return files["header.h"]


_EMBEDDED = """\
    .section .rodata.tfi, "a", @progbits
    .balign 4096
    .globl tfi_embedded
    .hidden tfi_embedded
    .type tfi_embedded, @object
tfi_embedded:
    .incbin "weights.bin"
    .byte 0
    .size tfi_embedded, . - tfi_embedded
    .section .note.GNU-stack, "", @progbits
"""


def _rename(work: Path, n: int, manifest: Manifest) -> None:
    """Gives what the object code of a variant defines names of its own, so that several can be linked together."""
    tool = shutil.which("objcopy")
    if tool is None:
        message = "code for several targets is joined with objcopy, which is not installed"
        raise CompilerError.of(Code.MISSING_DEPENDENCY, message, help="on Debian and Ubuntu: apt-get install binutils")
    kernels = (k.symbol for e in manifest.entries for k in e.kernels)
    names = dict.fromkeys([*POOL_SYMBOLS, *(e.symbol for e in manifest.entries), *kernels])
    (work / "names").write_text("".join(f"{plain} {_symbol(True, n, plain)}\n" for plain in names))
    _run([tool, "--redefine-syms=names", f"code{n}.o"], work)


def _run(command: Sequence[str], work: Path) -> None:
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise CompilerError.of(Code.MISSING_DEPENDENCY, f"'{command[0]}' cannot be run: {error.strerror}") from None
    if done.returncode == 0:
        return
    absent = re.search(r"fatal error: (\S+): No such file|cannot find (-l\S+)", done.stderr)
    if absent is not None and absent[1] not in ("header.h", "tables.h", "typed.h", *_PARTS):
        message = f"the C compiler does not find {absent[1] or absent[2]}"
        raise CompilerError.of(Code.MISSING_DEPENDENCY, message, help="on Debian and Ubuntu: apt-get install libc6-dev")
    shown = " ".join(done.stderr.split())[-600:]
    raise InternalError.of(Code.LINK_FAILED, f"'{shlex.join(command)[:200]}' failed: {shown}")
