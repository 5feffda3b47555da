"""The bits of CPUID that stand for LLVM's features, each against what LLVM finds on this machine."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
from c_harness import needs_cc

from trustformers_ir.codegen.llvm.target import binding, familiar, parse
from trustformers_ir.runtime.c_header import TEMPLATES
from trustformers_ir.runtime.cpu_features import FEATURE_BITS

x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="CPUID is an instruction of x86")


def source() -> str:
    """The C function that asks, cut out of the library's source, and a program that prints what it says of every row."""
    text = (TEMPLATES / "library.c").read_text()
    feature = next(line for line in text.splitlines() if line.endswith("tfi_feature;"))
    begin = text.index("static const uint64_t tfi_states")
    asks = text[begin : text.index("/* Adds the features", begin)]
    rows = "".join(f'    {{"{n}", {b.leaf}u, {b.subleaf}u, {b.register}, {b.bit}, {b.state}}},\n' for n, b in FEATURE_BITS.items())
    main = "int main(void) { unsigned i; for (i = 0; i < sizeof t / sizeof *t; i++) printf(\"%s %d\\n\", t[i].name, tfi_has(&t[i])); return 0; }"
    return f"#include <cpuid.h>\n#include <stdint.h>\n#include <stdio.h>\n{feature}\n{asks}static const tfi_feature t[] = {{\n{rows}}};\n{main}\n"


@needs_cc
@x86
def test_every_bit_against_llvm(tmp_path: Path) -> None:
    (tmp_path / "f.c").write_text(source())
    subprocess.run(["cc", "-std=c99", "-o", "f", "f.c"], cwd=tmp_path, check=True)
    lines = subprocess.run(["./f"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split("\n")
    found = {name: value == "1" for name, value in (line.split() for line in lines if line)}
    known = binding().get_host_cpu_features()
    differ = {name for name, value in found.items() if name in known and known[name] != value}
    assert not differ and len(found.keys() & known.keys()) > 80


@x86
def test_every_feature_of_a_target_has_a_bit() -> None:
    for name in ("host", *familiar()):
        assert set(parse(name).features) <= FEATURE_BITS.keys()
