"""Object code linked by ourselves: what it does, what its memory may be used for, how it comes and goes, and what goes to LLVM instead."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_harness import encoder_inputs, encoder_module, same

from trustformers_ir.codegen.llvm.compile import compile_object
from trustformers_ir.codegen.llvm.target import Target, binding, familiar, host
from trustformers_ir.ir.abi import POOL_SYMBOLS, TargetInfo
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.runtime import linker, native, pages
from trustformers_ir.runtime.elf import BadObject, Group, UnknownForm, read_object
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.runtime.linker import link_objects
from trustformers_ir.runtime.native import LinkError, NativeLibrary, link
from trustformers_ir.runtime.targets import check_target

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not host().triple.startswith("x86_64"), reason="our linker is for Linux on x86-64")

#: Functions and data of every kind: constants, zeros, data, a table of addresses of its own and of the C library's.
EVERYTHING = """
@state = global i64 5
@zeros = internal global [1000 x i64] zeroinitializer, align 64
@numbers = private constant [3 x i64] [i64 100, i64 200, i64 300]
@table = internal constant [3 x ptr] [ptr @one, ptr @two, ptr @labs]
@environ = external global ptr
declare i64 @labs(i64)
declare double @lgamma(double)

define internal i64 @one(i64 %x) { ret i64 1 }
define i64 @two(i64 %x) { ret i64 2 }

define i64 @count() {
  %a = load i64, ptr @state
  %b = add i64 %a, 1
  store i64 %b, ptr @state
  %p = getelementptr i64, ptr @zeros, i64 999
  %c = load i64, ptr %p
  %d = add i64 %b, %c
  ret i64 %d
}

define i64 @number(i64 %n) {
  %p = getelementptr i64, ptr @numbers, i64 %n
  %v = load i64, ptr %p
  ret i64 %v
}

define i64 @through(i64 %n, i64 %x) {
  %p = getelementptr ptr, ptr @table, i64 %n
  %f = load ptr, ptr %p
  %v = call i64 %f(i64 %x)
  ret i64 %v
}

define ptr @where_environ_is() { ret ptr @environ }

define double @of_libm(double %x) {
  %v = call double @lgamma(double %x)
  ret double %v
}

define float @constant(float %x) {
  %v = fmul float %x, 0x4005BF0A80000000
  ret float %v
}
"""
NAMES = ["count", "number", "through", "where_environ_is", "of_libm", "constant", "two", "state"]


@functools.cache
def everything() -> bytes:
    return compile_object(EVERYTHING, host(), level=0)


def made(text: str) -> bytes:
    return compile_object(text, host())


def with_llvm(objects: Sequence[bytes], symbols: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> NativeLibrary:
    """The same, linked by LLVM."""

    def refuse(*_: Any) -> None:
        raise UnknownForm("not today")

    with monkeypatch.context() as patch:
        patch.setattr(native, "link_objects", refuse)
        return link(objects, symbols)


@pytest.fixture
def no_llvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks LLVM to link has failed."""

    def refuse(*_: Any) -> None:
        raise AssertionError("LLVM was asked")

    monkeypatch.setattr(native, "link_with_llvm", refuse)


def maps() -> dict[int, str]:
    """The access of each page of this process that has any, by address."""
    found = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, *_ = line.split()
        begin, end = (int(n, 16) for n in span.split("-"))
        found.update(dict.fromkeys(range(begin, min(end, begin + (1 << 26)), 4096), access[:3]))
    return found


def number(library: NativeLibrary, name: str, *values: int) -> int:
    word = ctypes.c_int64
    return int(library.function(name, word, *[word] * len(values))(*values))


# --- what it does -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", [True, False])
def test_every_kind_of_data(ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    library = link([everything()], NAMES) if ours else with_llvm([everything()], NAMES, monkeypatch)
    assert [number(library, "count") for _ in range(3)] == [6, 7, 8]
    assert ctypes.c_int64.from_address(library.address("state")).value == 8
    assert [number(library, "number", n) for n in range(3)] == [100, 200, 300]
    assert [number(library, "through", n, -7) for n in range(3)] == [1, 2, 7]
    assert library.function("where_environ_is", ctypes.c_void_p)() == linker.process_symbol("environ")
    assert library.function("of_libm", ctypes.c_double, ctypes.c_double)(5.0) == pytest.approx(np.log(24.0))
    assert library.function("constant", ctypes.c_float, ctypes.c_float)(2.0) == np.float32(2) * np.float32(np.e)


def test_everything_is_linked_without_llvm(no_llvm: None) -> None:
    relocations = {int(k) for s in read_object(everything()).sections.values() for k in s.relocations["kind"]}
    assert {s.group for s in read_object(everything()).sections.values()} == set(Group) and len(relocations) > 3
    test_every_kind_of_data(True, pytest.MonkeyPatch())


@pytest.mark.parametrize("target", ["host", *familiar()])
def test_modules_of_every_level_by_both_linkers(target: str, no_llvm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of each kind of machine is linked; what this machine executes gives the same bits as when LLVM has linked it."""
    compiled = encoder_module(target)
    m = compiled.manifest
    symbols = [*POOL_SYMBOLS, *(e.symbol for e in m.entries)]
    assert link([compiled.code], symbols).address(m.entries[0].symbol)
    try:
        check_target(TargetInfo(m.target.name, m.target.triple, m.target.cpu, m.target.features))
    except CompilerError:
        return
    ours = Executable(compiled, 2)(*encoder_inputs())
    monkeypatch.undo()
    theirs = Executable(replace(compiled), 2)
    monkeypatch.setattr("trustformers_ir.runtime.executable.link", lambda objects, names: with_llvm(objects, names, monkeypatch))
    assert same(ours, theirs(*encoder_inputs()))


def test_several_objects_find_each_other(no_llvm: None) -> None:
    one = made("declare i64 @g(i64)\n@v = global i64 3\ndefine i64 @f(i64 %x) {\n  %y = call i64 @g(i64 %x)\n  ret i64 %y\n}")
    two = made("@v = external global i64\ndefine i64 @g(i64 %x) {\n  %a = load i64, ptr @v\n  %y = mul i64 %x, %a\n  ret i64 %y\n}")
    for objects in ([one, two], [two, one]):
        assert number(link(objects, ["f"]), "f", 14) == 42


def test_weak_definitions_give_way(no_llvm: None) -> None:
    def function(linkage: str, value: int) -> bytes:
        return made(f"define {linkage} i64 @f() {{ ret i64 {value} }}\n")

    user = made("declare i64 @f()\ndefine i64 @g() {\n  %y = call i64 @f()\n  ret i64 %y\n}")
    weak, strong = function("weak", 1), function("", 2)
    for objects, result in (([weak, user], 1), ([weak, strong, user], 2), ([strong, weak, user], 2), ([weak, function("weak", 3), user], 1)):
        assert number(link(objects, ["g"]), "g") == result
    with pytest.raises(LinkError, match="'f' is defined twice"):
        link([strong, function("", 3)], ["f"])


def test_what_may_be_absent_is_null(no_llvm: None) -> None:
    text = "@absent = extern_weak global i64\n@environ = extern_weak global ptr\n"
    for name in ("absent", "environ"):
        text += f"define i64 @{name}_at() {{\n  %v = ptrtoint ptr @{name} to i64\n  ret i64 %v\n}}\n"
    library = link([made(text)], ["absent_at", "environ_at"])
    assert number(library, "absent_at") == 0 and number(library, "environ_at") == linker.process_symbol("environ")


@pytest.mark.parametrize("symbols", [["nothing"], ["labs"], ["one"]])
def test_symbols_that_are_not_there_are_named(symbols: list[str], no_llvm: None) -> None:
    """Neither what is defined nowhere, nor what only the C library has, nor what an object keeps to itself."""
    with pytest.raises(LinkError, match=f"linking failed: symbols not found: {symbols[0]}") as caught:
        link([everything()], symbols)
    assert caught.value.codes == (Code.LINK_FAILED,)


def test_functions_that_nobody_has_are_named(no_llvm: None) -> None:
    with pytest.raises(LinkError, match="symbols not found: tfir_of_nobody"):
        link([made("declare i64 @tfir_of_nobody()\ndefine i64 @f() {\n  %y = call i64 @tfir_of_nobody()\n  ret i64 %y\n}")], ["f"])


# --- its memory ---------------------------------------------------------------------------------------------------------------------------


def test_no_page_is_written_and_executed() -> None:
    image = link_objects([everything()], NAMES)
    there = maps()
    mine = [there[image.pages.address + at] for at in range(0, image.pages.size, 4096)]
    assert sorted(set(mine)) == ["r--", "r-x", "rw-"]
    assert there[image.addresses["count"] & -4096] == "r-x" and there[image.addresses["state"] & -4096] == "rw-"
    image.pages.unmap()


def test_code_is_unmapped_with_its_library() -> None:
    library = link([everything()], NAMES)
    address = library.address("count") & -4096
    call = library.function("count", ctypes.c_int64)
    del library
    gc.collect()
    assert call() == 6 and address in maps()  # the function keeps it
    del call
    gc.collect()
    assert maps().get(address) != "r-x"


def test_a_thousand_libraries(no_llvm: None) -> None:
    def count() -> int:
        gc.collect()
        return len(Path("/proc/self/maps").read_text().splitlines())

    before = count()
    libraries = [link([everything()], NAMES) for _ in range(300)]
    assert count() >= before + 300
    assert all(number(x, "count") == 6 for x in libraries)  # each has data of its own
    del libraries
    for _ in range(700):
        link([everything()], NAMES)
    assert count() < before + 20


def test_what_cannot_be_linked_leaves_nothing_behind() -> None:
    def run(times: int) -> int:
        for _ in range(times):
            with pytest.raises(LinkError):
                link([everything()], ["nothing"])
        return len(Path("/proc/self/maps").read_text().splitlines())

    run(3)
    assert run(100) <= run(1) + 3


def test_a_child_has_what_its_parent_linked() -> None:
    library = link([everything()], NAMES)
    assert number(library, "count") == 6
    child = os.fork()
    if child == 0:
        good = number(library, "count") == 7 and number(link([everything()], NAMES), "count") == 6
        del library
        gc.collect()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert number(library, "count") == 7  # the child has data of its own, and has unmapped its own


def test_threads_link_at_once(no_llvm: None) -> None:
    wrong: list[object] = []

    def work() -> None:
        for _ in range(40):
            found = number(link([everything()], NAMES), "through", 1, 0)
            wrong.extend([found] if found != 2 else [])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


PROGRAM = """
import sys, threading, ctypes
from trustformers_ir.runtime.native import link
library = link([open(sys.argv[1], "rb").read()], ["forever", "started"])
forever = library.function("forever", None)
threading.Thread(target=forever, daemon=True).start()
started = ctypes.c_int64.from_address(library.address("started"))
while not started.value: pass
del library, forever
print("done")
"""


def test_code_stays_while_the_interpreter_goes_down(tmp_path: Path) -> None:
    """A thread is in it until the very end."""
    loop = "@started = global i64 0\ndefine void @forever() {\n  br label %l\nl:\n  store volatile i64 1, ptr @started\n  br label %l\n}"
    (tmp_path / "m.o").write_bytes(made(loop))
    run = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "m.o")], check=False, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and run.stdout == "done\n", run.stderr


def test_a_system_that_gives_no_memory_for_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a policy forbids programs to make code."""
    before = len(Path("/proc/self/maps").read_text().splitlines())

    def refuse(self: pages.Pages, offset: int, size: int, access: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pages.Pages, "protect", refuse)
    with pytest.raises(LinkError, match=r"linking failed: .*Permission denied"):
        link([everything()], NAMES)
    assert len(Path("/proc/self/maps").read_text().splitlines()) <= before + 3


def test_pages_are_not_written_outside() -> None:
    area = pages.Pages(10)
    assert area.size == 4096
    for at in (-1, 4095, 5000):
        with pytest.raises(IndexError):
            area.write(at, np.zeros(2, np.uint8))
    area.unmap()
    with pytest.raises(OSError, match="memory"):
        pages.Pages(1 << 62)


# --- what LLVM links ----------------------------------------------------------------------------------------------------------------------


def of_model(text: str, model: str) -> bytes:
    """An object of another code model, whose relocations have 32 bits."""
    llvm = binding()
    module = llvm.parse_assembly(f'target triple = "{host().triple}"\n{text}')
    return bytes(llvm.Target.from_triple(host().triple).create_target_machine(reloc="pic", codemodel=model).emit_object(module))


def test_other_forms_are_linked_by_llvm() -> None:
    text = "@v = internal global i64 3\ndefine i64 @f(i64 %x) {\n  %a = load i64, ptr @v\n  %y = mul i64 %x, %a\n  ret i64 %y\n}"
    image = of_model(text, "small")
    with pytest.raises(UnknownForm, match="a relocation of section"):
        link_objects([image], ["f"])
    assert number(link([image], ["f"]), "f", 14) == 42


@pytest.mark.parametrize("kind", ["thread_local global i64 3", "common global i64 0"])
def test_forms_that_our_compiler_does_not_make(kind: str) -> None:
    with pytest.raises(UnknownForm):
        link_objects([made(f"@v = {kind}\ndefine ptr @f() {{ ret ptr @v }}")], ["f"])


def test_code_of_another_architecture_is_not_read() -> None:
    binding().initialize_all_targets()
    binding().initialize_all_asmprinters()
    image = compile_object("define i64 @f() { ret i64 1 }", Target("a", "aarch64-unknown-linux-gnu", "generic", ()))
    with pytest.raises(UnknownForm, match="it is for machine 183"):
        link_objects([image], ["f"])
    with pytest.raises(UnknownForm):
        link_objects([everything(), image], ["f"])


def test_both_linkers_refuse_what_is_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    for image in (b"", b"\x7fELF" + bytes(2000), everything()[:-100], b"MZ" + bytes(2000)):
        with pytest.raises(BadObject):
            link_objects([image], NAMES)
        with pytest.raises(LinkError, match="linking failed"):
            with_llvm([image], NAMES, monkeypatch)
