"""The bits of CPUID that stand for LLVM's features, asked from C and from Python, each against what LLVM finds on this machine."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from c_harness import needs_cc

from trustformers_ir.codegen.llvm.target import binding, familiar, parse
from trustformers_ir.runtime import host, pages
from trustformers_ir.runtime.c_header import TEMPLATES
from trustformers_ir.runtime.cpu_features import EAX, FEATURE_BITS, STATES
from trustformers_ir.runtime.cpuid import Cpu

x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="CPUID is an instruction of x86")
linux_x86 = pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="the CPU is asked under Linux on x86-64")


@pytest.fixture
def cpu() -> Iterator[Cpu]:
    found = Cpu()
    yield found
    found.close()


@pytest.fixture
def asked_anew() -> Iterator[None]:
    host._asked.cache_clear()
    yield
    host._asked.cache_clear()


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


@linux_x86
def test_every_feature_that_llvm_knows_from_python(cpu: Cpu) -> None:
    """There is a row for each name of this version of LLVM, and it says the same."""
    known = binding().get_host_cpu_features()
    assert known.keys() <= FEATURE_BITS.keys(), "rows of runtime/cpu_features.py are missing"
    assert {name: cpu.has(FEATURE_BITS[name]) for name in known} == dict(known)


@linux_x86
def test_leaves_that_are_not_there(cpu: Cpu) -> None:
    """CPUs answer with the last leaf, or with nothing in particular."""
    assert cpu.leaf(cpu.leaf(0)[EAX] + 1) == cpu.leaf(0xFFFFFFFF) == (0, 0, 0, 0)
    assert cpu.leaf(7, cpu.leaf(7)[EAX] + 1) == (0, 0, 0, 0)
    assert cpu.leaf(1) != (0, 0, 0, 0)


@linux_x86
def test_registers_that_the_system_does_not_save(cpu: Cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_states", STATES[1])
    assert cpu.has(FEATURE_BITS["avx2"]) and not any(cpu.has(b) for name, b in FEATURE_BITS.items() if name.startswith("avx512"))
    monkeypatch.setattr(cpu, "_states", 0)
    assert not cpu.has(FEATURE_BITS["avx"]) and cpu.has(FEATURE_BITS["sse2"])


@linux_x86
def test_the_states_are_those_of_the_library_in_c() -> None:
    line = next(x for x in (TEMPLATES / "library.c").read_text().splitlines() if "tfi_states[] =" in x)
    assert [int(n, 0) for n in line[line.index("{") + 1 : line.index("}")].split(",")] == list(STATES)


@linux_x86
def test_what_is_lacking(asked_anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_features_by_llvm", lambda: frozenset({"of-next-year", "amx-int8"}))
    there = [name for name, on in binding().get_host_cpu_features().items() if on]
    assert host.lacking(there) == []
    assert host.lacking(["of-next-year", *there]) == []  # LLVM is asked for a name that the table does not have
    assert host.lacking(["sse2", "of-nobody", "lwp"]) == ["lwp", "of-nobody"]  # no CPU that has AVX2 has the other


@linux_x86
def test_a_machine_is_the_same_however_it_is_asked() -> None:
    """The key of the compile cache rests on it: the same from another process, and plain data."""
    program = "import json; from trustformers_ir.runtime.host import this_machine; print(json.dumps(this_machine()))"
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    machine = host.this_machine()
    assert json.loads(run.stdout) == machine and set(machine) == {"system", "cpu", "features"}
    assert machine["features"] == sorted(name for name, on in binding().get_host_cpu_features().items() if on)


@linux_x86
def test_where_no_code_can_be_made_llvm_is_asked(asked_anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: pages.Pages, offset: int, size: int, access: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pages.Pages, "protect", refuse)
    assert host.this_machine()["cpu"] == binding().get_host_cpu_name() and host.lacking(["avx2"]) == []


@x86
def test_every_feature_of_a_target_has_a_bit() -> None:
    for name in ("host", *familiar()):
        assert set(parse(name).features) <= FEATURE_BITS.keys()
