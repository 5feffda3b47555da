"""The versions of everything whose code decides over the bytes of an output."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from trustformers_ir.codegen.triton.target import is_gpu
from trustformers_ir.frontend.factory import is_factory
from trustformers_ir.ir.digests import file_digest
from trustformers_ir.ir.version import VERSION
from trustformers_ir.runtime.library import find_compiler
from trustformers_ir.tools.locking.request import COMPILE, Request

PACKAGE = Path(__file__).resolve().parents[2]
SOURCES = (".py", ".c", ".h")
#: packages that write a kind of file
WRITERS = {".onnx": ("onnx", "protobuf"), ".gguf": ("gguf",), ".mlpackage": ("coremltools", "protobuf")}


def versions(request: Request) -> dict[str, str]:
    """Names and versions of packages, sorted; ``trustformers_ir.sources`` is a digest of our own source files, ``llvm`` the LLVM in llvmlite, ``cc``
    the C compiler that links shared libraries."""
    names = {"numpy", "ml_dtypes"}
    found = {"trustformers_ir": VERSION, "trustformers_ir.sources": source_digest()}
    if request.option("calibrate"):  # examples run through native code
        names.add("llvmlite")
        found["llvm"] = _llvm()
    if request.command == COMPILE:
        if any(is_gpu(t) for t in request.targets):
            names.add("triton")
        else:
            names.add("llvmlite")
            found["llvm"] = _llvm()
        if request.outputs[0].endswith(".so"):
            found["cc"] = _c_compiler()
    for name in request.outputs:
        names |= set(WRITERS.get(Path(name).suffix, ()))
    if request.model.endswith(".onnx"):
        names |= set(WRITERS[".onnx"])
    if is_factory(request.model):
        names.add("torch")
    return dict(sorted((found | {name: version for name in names if (version := _installed(name)) is not None}).items()))


def information() -> dict[str, str]:
    """What bytes do not depend on, for whoever reads a lock."""
    return {"python": platform.python_version()}


@functools.cache
def source_digest() -> str:
    """SHA-256 over the names and digests of the package's source files: of a version in development there are many."""
    rows = [f"{file_digest(p)}  {p.relative_to(PACKAGE).as_posix()}\n" for p in _sorted(PACKAGE)]
    return hashlib.sha256("".join(rows).encode()).hexdigest()


def _sorted(folder: Path) -> Sequence[Path]:
    return sorted((p for p in folder.rglob("*") if p.suffix in SOURCES and p.is_file()), key=lambda p: p.relative_to(folder).as_posix())


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _llvm() -> str:
    import llvmlite.binding as llvm

    return ".".join(map(str, llvm.llvm_version_info))


def _c_compiler() -> str:
    """The first line in which the C compiler names itself."""
    said = subprocess.run([*find_compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0].strip()
