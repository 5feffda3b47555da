"""Shared libraries for C: the same bits, shapes and errors as in Python, and nothing but libc behind them."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from operator import add, floordiv, mod, mul
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_harness import STRICT, Failed, Library, build, needs_cc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_harness import QUOTAS, compiled, encoder, encoder_inputs, encoder_module, f32, i64

import trustformers_ir as tfir
from trustformers_ir.codegen.llvm.target import host, parse
from trustformers_ir.ir import machine
from trustformers_ir.ir.abi import CompiledModule
from trustformers_ir.ir.diagnostics import Code, CompilerError, InternalError
from trustformers_ir.ir.dims import evaluate, parse_dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.text import parse_module
from trustformers_ir.runtime import artifact
from trustformers_ir.runtime.c_header import TEMPLATES, identifiers, named, typed
from trustformers_ir.runtime.c_tables import CODES, Programs, linear_in
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.runtime.library import library_name, sources
from trustformers_ir.tools.cli import main

pytestmark = needs_cc
TARGETS = ("cpu:avx512", "cpu:avx2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("library")


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return build(encoder(), folder / "libencoder.so")


def python() -> Executable:
    return Executable(encoder(), 1)


# -- the same results ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_as_python(library: Library, threads: int) -> None:
    session = library.session(threads=threads)
    for batch, seq in ((1, 1), (3, 11), (64, 128), (1, 128), (5, 2)):
        inputs = encoder_inputs(batch, seq)
        for a, b in zip(session(*inputs), python()(*inputs), strict=True):
            assert a.shape == b.shape and a.tobytes() == b.tobytes()
    session.close()


def test_many_callers_of_one_session(library: Library) -> None:
    session = library.session(threads=2)
    expected = {n: [y.tobytes() for y in python()(*encoder_inputs(1 + n, 7, n))] for n in range(6)}
    wrong: list[int] = []

    def call(n: int) -> None:
        for _ in range(50):
            if [y.tobytes() for y in session(*encoder_inputs(1 + n, 7, n))] != expected[n]:
                wrong.append(n)

    threads = [threading.Thread(target=call, args=(n,)) for n in expected]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    session.close()
    assert not wrong


def test_outputs_that_nobody_wants(library: Library) -> None:
    session, inputs = library.session(), encoder_inputs()
    pooled = np.empty((3, 40), np.float32)
    outputs = (library.Output * 2)()
    outputs[1].data, outputs[1].capacity = pooled.ctypes.data, pooled.nbytes
    session.run(0, (library.Input * 2)(*map(library.input, inputs)), 2, outputs)
    assert pooled.tobytes() == python()(*inputs)[1].tobytes()
    session.close()


def test_inputs_that_may_be_left_out(folder: Path) -> None:
    module = compiled(lambda x, y, z: x * y + z, f32["a", "b"], f32["a", "b"], f32["b"], facts={"a": (1, 9), "b": (0, 9)})
    names = [p.name for p in module.manifest.entries[0].inputs]
    module = replace(module, manifest=replace(module.manifest, metadata={f"default.{names[1]}": "3", f"default.{names[2]}": "-1"}))
    library = build(module, folder / "libleft.so")
    session, x = library.session(threads=1), np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(session(x, None, None)[0], x * 3 - 1)
    np.testing.assert_array_equal(session(x, x, None)[0], x * x - 1)
    assert session(np.zeros((2, 0), np.float32), None, None)[0].shape == (2, 0)
    with pytest.raises(Failed, match="is missing"):
        session(None, x, x[0])
    session.close()


DTYPES = [d for d in DType if not d.is_complex]


def test_every_dtype(folder: Path) -> None:
    module = compiled(lambda *xs: xs, *(d["n"] for d in DTYPES), facts={"n": (0, 9)})
    library = build(module, folder / "libdtypes.so")
    session = library.session(threads=1)
    arrays = [np.arange(5).astype(d.numpy) for d in DTYPES]
    for a, b in zip(arrays, session(*arrays), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
    session.close()
    other = module.manifest.entries[0]
    entry = replace(other, inputs=(replace(other.inputs[0], type=DType.c64["n"]), *other.inputs[1:]))
    with pytest.raises(CompilerError) as caught:
        build(replace(module, manifest=replace(module.manifest, entries=(entry,))), folder / "libcomplex.so")
    assert caught.value.codes == (Code.UNSUPPORTED_DTYPE,) and not (folder / "libcomplex.so").exists()


# -- the same checks -----------------------------------------------------------------------------------------------------------------

SHAPES = ("a", "a*b", "a + 2", "2*a + b", "a - 3", "5", "(a + 1)//2", "min(a, b)", "max(a, 4)", "a*b + c", "b%3", "c//4", "a*a")
OUT = ("a + b + c", "2*a*b", "(a + b)//2 + c%5", "max(a, b)*min(b, c)", "3")


def shaped(first: str, second: str, third: str) -> CompiledModule:
    """A module whose inputs have odd shapes; nothing is ever computed with it."""
    facts = {"a": (0, 40), "b": (1, 12, 3), "c": (2, 10_000)}
    base = compiled(lambda x, y, z: x + y[0] + z.sum() * 0, f32["a"], f32["b"], f32["c"], facts={k: v[:2] for k, v in facts.items()})
    entry = base.manifest.entries[0]
    types = [f32[tuple(map(parse_dim, dims))] for dims in ((first, "c"), (second, "b"), (third,))]
    ports = tuple(replace(p, type=t) for p, t in zip(entry.inputs, types, strict=True))
    out = (replace(entry.outputs[0], type=f32[tuple(map(parse_dim, OUT))]),)
    symbols = tuple((n, replace(f, divisor=3) if n == "b" else f) for n, f in base.manifest.symbols)
    return replace(base, manifest=replace(base.manifest, symbols=symbols, entries=(replace(entry, inputs=ports, outputs=out),)))


CASES = [("a", "a + b", "c"), ("a*b", "b%3", "2*a + b"), ("(a + 1)//2", "a - 3", "a*b + c"), ("max(a, 4)", "min(a, b)", "a"), ("5", "c//4", "a*a")]
CASES += [("a + 2", "a*b + c", "a"), ("a*b", "5", "a*a")]


@pytest.mark.parametrize("dims", CASES, ids=" ".join)
def test_shapes_are_checked_and_computed_as_in_python(dims: tuple[str, str, str], folder: Path) -> None:
    module = shaped(*dims)
    library = build(module, folder / f"lib{abs(hash(dims))}.so")
    exe = Executable(module, 1)
    agreed = {"right": 0, "wrong": 0}

    def compare(*shapes: tuple[int, ...]) -> None:
        zero = np.zeros((), np.float32)
        arrays = [np.broadcast_to(zero, s) for s in shapes]
        inputs = [library.Input(None, 11, len(s), (ctypes.c_int64 * library.rank)(*s)) for s in shapes]
        said: CompilerError | None = None
        try:
            plan = exe._first.plan(arrays)
        except CompilerError as error:
            said = error
        if said is None:
            assert library.infer(*inputs) == [shape for shape, _ in plan.bound.results], shapes
            agreed["right"] += 1
            return
        with pytest.raises(Failed) as caught:
            library.infer(*inputs)
        assert caught.value.code in {c.number for c in said.codes}, (shapes, str(caught.value), str(said))
        agreed["wrong"] += 1

    sizes = st.integers(0, 45) | st.sampled_from([3, 6, 9, 12, 2, 10_000])

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.tuples(sizes, sizes), st.tuples(sizes, sizes), st.tuples(sizes))
    def anything(x: tuple[int, ...], y: tuple[int, ...], z: tuple[int, ...]) -> None:
        compare(x, y, z)

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(0, 42), st.sampled_from([3, 6, 9, 12, 5]), st.integers(1, 40))
    def consistent(a: int, b: int, c: int) -> None:
        env = {"a": a, "b": b, "c": c}
        shapes = [tuple(evaluate(d, env) for d in p.type.shape) for p in module.manifest.entries[0].inputs]
        if all(n >= 0 for s in shapes for n in s):
            compare(*shapes)

    anything()
    consistent()
    assert agreed["wrong"] > 100


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Texts of dims that are made of smaller ones."""
    return (
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "*", "-"]), inner)
        | st.builds("({}//{})".format, inner, st.sampled_from(["2", "5", "(c + 1)"]))
        | st.builds("({}%{})".format, inner, st.sampled_from(["3", "4"]))
        | st.builds("{}({}, {})".format, st.sampled_from(["min", "max"]), inner, inner)
    )


@settings(max_examples=300, deadline=None)
@given(st.recursive(st.sampled_from(["a", "b", "c", "1", "7", "-3"]), larger, max_leaves=8), st.tuples(*[st.integers(0, 20)] * 3))
def test_programs_of_sizes(written: str, values: tuple[int, int, int]) -> None:
    """The words of a program, executed as library.c does, give the value of the dim; the stack is as deep as was announced."""
    dim, env = parse_dim(written), dict(zip("abc", values, strict=True))
    programs = Programs(["a", "b", "c"])
    at, stack, deepest = programs.add(dim), [], 0
    while (word := programs.words[at]) != 0:
        at += 1
        if word in (1, 2):
            stack.append(programs.words[at] if word == 1 else values[programs.words[at]])
            at += 1
        else:
            b, a = stack.pop(), stack.pop()
            stack.append({3: add, 4: mul, 5: floordiv, 6: mod, 7: min, 8: max}[word](a, b))
        deepest = max(deepest, len(stack))
    assert stack == [evaluate(dim, env)] and deepest <= programs.depth
    for name in "abc":
        if (found := linear_in(dim, name)) is not None:
            assert evaluate(found[0], env) * env[name] + evaluate(found[1], env) == evaluate(dim, env)


def test_an_index_out_of_range_names_the_op_and_its_place(library: Library) -> None:
    session, (ids, scale) = library.session(threads=2), encoder_inputs()
    for bad in (50, -51, 1 << 62):
        ids[1, 4] = bad
        with pytest.raises(CompilerError) as caught:
            python()(ids, scale)
        with pytest.raises(Failed) as failed:
            session(ids, scale)
        assert failed.value.code == Code.INDEX_OUT_OF_RANGE.number
        said = caught.value.diagnostics[0]
        assert said.message in str(failed.value) and f"{said.where.file}:{said.where.line}" in str(failed.value)
    session(*encoder_inputs())  # it goes on working
    session.close()


def wrong_inputs(library: Library) -> dict[str, tuple[Code, Any]]:
    ids, scale = encoder_inputs()
    good = library.input(ids)
    shape = ctypes.c_int64 * library.rank
    return {
        "another dtype": (Code.INPUT_DTYPE, (ids.astype(np.int32), scale)),
        "a dtype that is none": (Code.INPUT_DTYPE, (library.Input(good.data, 99, 2, good.shape), scale)),
        "a negative dtype": (Code.INPUT_DTYPE, (library.Input(good.data, -1, 2, good.shape), scale)),
        "a rank too few": (Code.INPUT_SHAPE, (ids[0], scale)),
        "a huge rank": (Code.INPUT_SHAPE, (library.Input(good.data, good.dtype, 1 << 30, good.shape), scale)),
        "left out": (Code.INPUT_COUNT, (None, scale)),
        "no data": (Code.INPUT_COUNT, (library.Input(None, good.dtype, 2, good.shape), scale)),
        "an input too few": (Code.INPUT_COUNT, (ids,)),
        "an input too many": (Code.INPUT_COUNT, (ids, scale, scale)),
        "a negative size": (Code.INPUT_SHAPE, (library.Input(good.data, good.dtype, 2, shape(-1, 3)), scale)),
        "the most negative size": (Code.INPUT_SHAPE, (library.Input(good.data, good.dtype, 2, shape(-(1 << 63), 3)), scale)),
        "too large": (Code.DIM_RANGE, (library.Input(good.data, good.dtype, 2, shape(65, 3)), scale)),
        "far too large": (Code.DIM_RANGE, (library.Input(good.data, good.dtype, 2, shape((1 << 63) - 1, (1 << 63) - 1)), scale)),
        "empty": (Code.DIM_RANGE, (ids[:0], scale)),
        "not aligned": (Code.USAGE, (library.Input(good.data + 1, good.dtype, 2, good.shape), scale)),
    }


def test_wrong_inputs(library: Library) -> None:
    session = library.session(threads=2)
    for name, (code, values) in wrong_inputs(library).items():
        with pytest.raises(Failed) as failed:
            session(*values)
        assert failed.value.code == code.number, (name, str(failed.value))
        assert len(str(failed.value)) > 20
    for entry in (-1, 1, 1 << 30):
        with pytest.raises(Failed, match="5018: there is no function"):
            library.checked("run", session.handle, entry, None, 0, None, 0)
        with pytest.raises(Failed, match="5018"):
            library.checked("infer", entry, None, 0, None, 0)
    with pytest.raises(Failed, match="6001: 1 outputs were given"):
        session.run(0, (library.Input * 2)(*map(library.input, encoder_inputs())), 2, (library.Output * 1)())
    for arguments in ((None, 0, None, 2, None, 2), (session.handle, 0, None, 2, None, 2)):
        with pytest.raises(Failed, match=r"6001: the (session is NULL|array of the inputs is NULL)"):
            library.checked("run", *arguments)
    session.close()
    library.function("destroy")(None)
    assert library.function("run")(None, 0, None, 0, None, 0, None) == Code.USAGE.number  # an error is not asked for
    assert library.function("code_text")(5013) == b"wrong input shape" and library.function("code_text")(-5) == b"unknown code"


def test_all_problems_are_told_together(library: Library) -> None:
    """As in Python: a wrong dtype, a wrong rank, and a size out of its bounds."""
    ids, _ = encoder_inputs(65, 3)
    values = ids.astype(np.float32), np.zeros((2, 2), np.float32)
    with pytest.raises(CompilerError) as said:
        python()._first.plan(values)
    with pytest.raises(Failed) as caught:
        library.infer(*map(library.input, values))
    assert caught.value.code == said.value.codes[0].number
    for text in ("input 'ids' has the dtype f32", "input 'scale' has rank 0", "the dim 'batch' is 65 by axis 0 of input 'ids'"):
        assert text in str(caught.value)


def test_messages_that_have_no_room_are_cut(folder: Path) -> None:
    names = tuple(f"{'x' * 60}{n}" for n in range(24))
    many = compiled(lambda *xs: sum(xs[1:], xs[0]), *[f32["a", "b"]] * 24, facts={"a": (1, 9), "b": (1, 9)})
    entry = many.manifest.entries[0]
    ports = tuple(replace(p, name=n) for p, n in zip(entry.inputs, names, strict=True))
    module = replace(many, manifest=replace(many.manifest, entries=(replace(entry, inputs=ports),)))
    library = build(module, folder / "libmany.so")
    with pytest.raises(Failed) as caught:
        library.infer(*[library.input(np.zeros((2, n + 1), np.float64)) for n in range(24)])
    assert caught.value.code == Code.INPUT_DTYPE.number and len(str(caught.value)) == len("5012: ") + 1023


def test_sizes_of_more_than_64_bits(folder: Path) -> None:
    facts = dict.fromkeys("ab", (0, 1 << 41))
    base = compiled(lambda x, y: x.sum() + y, f32["a"], f32["b"], facts=facts)
    entry = base.manifest.entries[0]
    for n, (second, out, want, sizes) in enumerate(
        [
            ("b", "a*a*a", Code.OUT_OF_MEMORY, (1 << 40, 3)),
            ("a*a*a", "3", Code.DIM_CONFLICT, (1 << 40, 3)),
            ("b", "a//b", Code.INPUT_SHAPE, (1 << 40, 0)),
        ]
    ):
        ports = (entry.inputs[0], replace(entry.inputs[1], type=f32[(parse_dim(second),)]))
        changed = replace(entry, inputs=ports, outputs=(replace(entry.outputs[0], type=f32[(parse_dim(out),)]),), arena_bytes=0, scratch_bytes=0)
        module = replace(base, manifest=replace(base.manifest, entries=(changed,)))
        library = build(module, folder / f"libwide{n}.so")
        with pytest.raises(CompilerError) as said:
            Executable(module, 1)._first.plan([np.broadcast_to(np.float32(0), (s,)) for s in sizes])
        inputs = [library.Input(None, 11, 1, (ctypes.c_int64 * library.rank)(s)) for s in sizes]
        with pytest.raises(Failed) as caught:
            library.infer(*inputs)
        assert (caught.value.code, said.value.codes[0]) == (want.number, want), (str(caught.value), str(said.value))


def test_buffers_that_overlap_or_are_too_small(library: Library) -> None:
    session = library.session(threads=1)
    ids, scale = encoder_inputs(1, 2)
    memory = np.zeros(4096, np.uint8)
    base = -(-memory.ctypes.data // 64) * 64
    inputs = (library.Input * 2)(library.input(ids), library.input(scale))

    def run(first: int, second: int, capacity: int = 2048) -> None:
        outputs = (library.Output * 2)()
        for o, at in zip(outputs, (first, second), strict=True):
            o.data, o.capacity = at, capacity
        session.run(0, inputs, 2, outputs)

    run(base, base + 2 * 40 * 4)
    for arguments, text in (
        ((base, base + 2 * 40 * 4 - 4), "overlaps output"),
        ((base, ids.ctypes.data), "overlaps input"),
        ((base + 2, base + 1024), "is not aligned"),
        ((base, base + 1024, 100), "there is room for 100"),
    ):
        with pytest.raises(Failed, match=text):
            run(*arguments)
    session.close()


# -- sessions, targets and weights -----------------------------------------------------------------------------------------------------


def test_options(library: Library, folder: Path) -> None:
    for options, text in (
        ({"threads": -1}, "6001: threads is -1"),
        ({"threads": 1025}, "6001: threads is 1025"),
        ({"target": "cpu:none"}, "6001: there is no code for the target 'cpu:none'"),
        ({"weights": folder / "absent"}, "6002: cannot open"),
        ({"weights": folder}, "6003: .*not an ordinary file"),
        ({"weights": "/dev/zero"}, "6003: .*not an ordinary file"),
        ({"weights": "x" * 5000}, "6003: the path of the weights is too long"),
    ):
        with pytest.raises(Failed, match=text):
            library.session(**options)
    with pytest.raises(Failed, match="6001: there is no place"):
        library.checked("create", None, None)
    session = library.session(threads=3, weights=folder / "libencoder.weights", check_weights=1, target="cpu")
    assert library.function("threads")(session.handle) == 3 and session.target == "cpu"
    session.close()


@pytest.mark.parametrize("own", ["0::/box/pod", "12:cpu:/x\n0::/box/pod/", "0::/", ""])
def test_cpus_of_a_cgroup_in_c(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python counts them."""
    (tmp_path / "own").write_text(own + "\n")
    program = """
        #define _GNU_SOURCE
        #include "cpus.h"
        #include <stdlib.h>
        int main(int n, char **words) { (void)n; (void)tfi_cpus; printf("%d", chdir(words[1]) ? -1 : tfi_within_quotas(8)); return 0; }
    """
    (tmp_path / "main.c").write_text(program)
    options = ["-DTFI_CGROUPS=\".\"", f'-DTFI_OWN_GROUP="{tmp_path}/own"', f"-I{TEMPLATES}"]
    subprocess.run(["cc", *STRICT, *options, "main.c", "-o", "main"], cwd=tmp_path, check=True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "_own_group", lambda: own.partition("0::")[2] or "/")
    for n, (files, _) in enumerate(QUOTAS):
        for name, text in files.items():
            (tmp_path / str(n) / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / str(n) / name).write_text(text + "\n")
        (tmp_path / str(n)).mkdir(exist_ok=True)
        monkeypatch.setattr(machine, "_CGROUPS", tmp_path / str(n))
        got = subprocess.run([tmp_path / "main", tmp_path / str(n)], capture_output=True, text=True, check=True).stdout
        assert int(got) == machine.cpus(), files
        if "pod" in own:
            assert int(got) == QUOTAS[n][1]


def test_a_session_has_a_worker_for_each_cpu_of_its_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setenv("CC", f"cc -DTFI_CGROUPS='\"{tmp_path}\"'")
    encoder_library = tmp_path / "libencoder.so"
    Executable(encoder(), 1).save(encoder_library)
    session = Library(encoder_library, encoder()).session()
    assert session.library.function("threads")(session.handle) == 1


def test_weights_that_are_not_the_right_ones(library: Library, folder: Path, tmp_path: Path) -> None:
    good = (folder / "libencoder.weights").read_bytes()
    assert len(good) == 4096 + max(w.offset + w.bytes for w in encoder().manifest.weights) and good[:8] == b"\x89TFW\r\n\x1a\n"
    path = tmp_path / "w"
    for content, text in (
        (good[:-1], f"5002: .* have {len(good) - 1} bytes, {len(good)} were written"),
        (b"", "5002"),
        (good + b"x", "5003: .*does not hold the weights"),
        (good[:20] + b"\x01" + good[21:], "5003: .*does not hold the weights"),
        (bytes(len(good)), "5003: .*does not hold the weights"),
    ):
        path.write_bytes(content)
        with pytest.raises(Failed, match=text):
            library.session(weights=path)
    path.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    library.session(weights=path).close()
    with pytest.raises(Failed, match="5003: the bytes of the weights have changed"):
        library.session(weights=path, check_weights=1)


def test_weights_in_the_library(folder: Path, tmp_path: Path) -> None:
    library = build(encoder(), tmp_path / "libone.so", embed_weights=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["libone.so", "one.h"]
    session, inputs = library.session(check_weights=1), encoder_inputs()
    assert [y.tobytes() for y in session(*inputs)] == [y.tobytes() for y in python()(*inputs)]
    session.close()
    with pytest.raises(Failed, match="6001: the weights are in the library"):
        library.session(weights=folder / "libencoder.weights")
    without = build(compiled(lambda x: x + 1, f32["n"]), tmp_path / "libnone.so", embed_weights=True)
    np.testing.assert_array_equal(without.session(check_weights=1)(np.ones(3, np.float32))[0], np.full(3, 2, np.float32))
    beside = build(compiled(lambda x: x + 1, f32["n"]), tmp_path / "libbeside.so")
    np.testing.assert_array_equal(beside.session(check_weights=1)(np.ones(3, np.float32))[0], np.full(3, 2, np.float32))


def test_code_for_several_targets(folder: Path) -> None:
    library = build([encoder_module(t) for t in TARGETS], folder / "libfat.so")
    running = [t for t in TARGETS if set(parse(t).features) <= set(host().features)]
    bits = {tuple(y.tobytes() for y in python()(*encoder_inputs()))}
    assert library.session().target == running[0]
    for target in running:
        session = library.session(target=target, threads=2)
        assert session.target == target
        bits.add(tuple(y.tobytes() for y in session(*encoder_inputs())))
        session.close()
    assert len(bits) == 1


def test_a_machine_that_lacks_features_is_told_which(folder: Path) -> None:
    if "amx-fp16" in host().features or "xop" in host().features:
        pytest.skip("this machine has what no other has")
    module = encoder()
    target = replace(module.manifest.target, name="cpu:future", cpu="future", features=("avx2", "xop", "amx-fp16"))
    library = build(replace(module, manifest=replace(module.manifest, target=target)), folder / "libfuture.so")
    with pytest.raises(Failed, match=r"5005: this machine cannot run the code: for cpu:future \(future\) lacks xop, amx-fp16"):
        library.session()
    unknown = replace(target, features=("quantum",))
    with pytest.raises(CompilerError, match="the CPU feature 'quantum' cannot be checked from C"):
        build(replace(module, manifest=replace(module.manifest, target=unknown)), folder / "libunknown.so")
    other = replace(target, triple="aarch64-unknown-linux-gnu")
    with pytest.raises(CompilerError) as caught:
        build(replace(module, manifest=replace(module.manifest, target=other)), folder / "libarm.so")
    assert caught.value.codes == (Code.TARGET_UNAVAILABLE,)
    with pytest.raises(InternalError, match="calling convention"):
        build(replace(module, manifest=replace(module.manifest, abi=99)), folder / "libabi.so")


def test_a_forked_child_makes_its_own_session(library: Library) -> None:
    session, inputs = library.session(threads=2), encoder_inputs()
    session(*inputs)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            session(*inputs)
        except Failed as failure:
            mine = library.session(threads=2)
            status = 0 if failure.code == Code.USAGE.number and len(mine(*inputs)) == 2 else 2
            session.close()
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    session.close()


# -- the files ---------------------------------------------------------------------------------------------------------------------------


def test_equal_modules_give_equal_files(library: Library, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    build(encoder_module(), other / "libencoder.so")
    for name in ("libencoder.so", "encoder.h", "libencoder.weights"):
        assert (other / name).read_bytes() == (folder / name).read_bytes(), name
    for n in range(2):
        (tmp_path / str(n)).mkdir()
        build([encoder_module(t) for t in TARGETS], tmp_path / str(n) / "libtwo.so", embed_weights=True)
    assert (tmp_path / "0" / "libtwo.so").read_bytes() == (tmp_path / "1" / "libtwo.so").read_bytes()


def test_an_artifact_can_become_a_library(library: Library, folder: Path, tmp_path: Path) -> None:
    python().save(tmp_path / "encoder.tfc")
    artifact.load(tmp_path / "encoder.tfc").save(tmp_path / "libencoder.so")
    for name in ("libencoder.so", "encoder.h", "libencoder.weights"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_needs_libc_alone_and_runs_nothing_when_loaded(library: Library, folder: Path) -> None:
    path = str(folder / "libencoder.so")
    dynamic = subprocess.run(["readelf", "-d", path], check=True, capture_output=True, text=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2"}
    assert "INIT" not in dynamic and "TEXTREL" not in dynamic and "[libencoder.so]" in dynamic
    symbols = subprocess.run(["nm", "-D", "--defined-only", path], check=True, capture_output=True, text=True).stdout
    defined = {line.split()[-1] for line in symbols.splitlines()}
    header = (folder / "encoder.h").read_text()
    assert defined == set(re.findall(r"\b(encoder_\w+)\(", header.split("*/", 1)[1]))
    stack = subprocess.run(["readelf", "-lW", path], check=True, capture_output=True, text=True).stdout
    assert re.search(r"GNU_STACK.*RW ", stack)


@pytest.mark.parametrize("language", ["c99", "c11", "c++11"])
def test_the_header_is_strict_c_and_cxx(library: Library, folder: Path, language: str) -> None:
    compiler = "c++" if "++" in language else "cc"
    if shutil.which(compiler) is None:
        pytest.skip("there is no C++ compiler: apt-get install g++")
    kind = "c++" if "++" in language else "c"
    flags = [f"-std={language}", *STRICT[1:], "-Wshadow", "-Wconversion", "-fsyntax-only", "-x", kind]
    program = '#include "encoder.h"\n#include "encoder.h"\nint main(void) { return encoder_main == 0; }\n'
    subprocess.run([compiler, *flags, "-Wno-address", "-I", str(folder), "-"], input=program, text=True, check=True)


@pytest.mark.parametrize("several", [False, True])
def test_the_runtime_is_strict_c(tmp_path: Path, several: bool) -> None:
    manifests = [encoder_module(t).manifest for t in TARGETS[: 1 + several]]
    for file, content in sources(manifests, "model", None if several else "model.weights", bytes(56), 0).items():
        (tmp_path / file).write_text(content)
    subprocess.run(["cc", *STRICT, "-Wno-overlength-strings", "-O1", "-c", "library.c"], cwd=tmp_path, check=True)


def test_names_that_c_does_not_take(tmp_path: Path) -> None:
    module = compiled(lambda x, y, z: (x, y, z), f32[()], i64["int", 3], f32[4], facts={"int": (1, 5)}, name="*/ strange /* ??/\n")
    entry = module.manifest.entries[0]
    ports = tuple(replace(p, name=name) for p, name in zip(entry.inputs, ("x", "größe", "ein*/zwei"), strict=True))
    module = replace(module, manifest=replace(module.manifest, entries=(replace(entry, name="run", inputs=ports),)))
    strange = build(module, tmp_path / "lib9-Lives.so")
    header = (tmp_path / "x9_lives.h").read_text()
    assert "int x9_lives_run_2(" in header and "const int64_t *gr__e;" in header and "const float *ein__zwei;" in header and "int64_t int_;" in header
    assert strange.session()(np.ones((), np.float32), np.ones((2, 3), np.int64), np.ones(4, np.float32))[1].shape == (2, 3)


def test_functions_whose_names_meet(tmp_path: Path) -> None:
    """One is called what goes with another; two differ in case alone; one is called like a constant; and an input is a macro of C."""
    base = compiled(lambda x: x + 1, f32["errno"], facts={"errno": (1, 9)})
    (entry,) = base.manifest.entries
    entry = replace(entry, inputs=(replace(entry.inputs[0], name="errno"),))
    names = ("main_infer", "main", "MAIN", "count", "Main_inputs", "symbol_count")
    module = replace(base, manifest=replace(base.manifest, entries=tuple(replace(entry, name=n) for n in names)))
    library = build(module, tmp_path / "libmeet.so")
    session = library.session(threads=1)
    for n in range(len(names)):
        np.testing.assert_array_equal(session(np.arange(3, dtype=np.float32), entry=n)[0], [1, 2, 3])
    text = (tmp_path / "meet.h").read_text()
    for row in ("int meet_main_infer(meet_session", "int meet_main_2(meet_session", "int meet_main_2_infer(const"):
        assert row in text


@pytest.mark.parametrize("name", ["tfi", "tfir", "tfm", "pthread", "x"])
def test_libraries_whose_names_are_taken(name: str, tmp_path: Path) -> None:
    library = build(encoder(), tmp_path / f"lib{name}.so")
    assert library.prefix == f"{name}_2"
    session = library.session(threads=1)
    for got, want in zip(session(*encoder_inputs()), python()(*encoder_inputs()), strict=True):
        np.testing.assert_array_equal(got, want)
    exported = subprocess.run(["nm", "-D", "--defined-only", tmp_path / f"lib{name}.so"], capture_output=True, text=True, check=True).stdout
    assert all(line.split()[-1].startswith(f"{name}_2_") for line in exported.splitlines())


def test_names() -> None:
    assert identifiers(["a", "a", "a b", "a-b", "int", "1", "", "ü"]) == ["a", "a_2", "a_b", "a_b_2", "int_", "x1", "x", "x_"]
    assert [library_name(n) for n in ("out/libMiniLM.so", "m.so", "lib.so", "lib7b.so", "libint.so")] == ["minilm", "m", "model", "x7b", "int_"]
    assert named("tfm_run TFM_OK xtfm_ tfi_x", "bert") == "bert_run BERT_OK xtfm_ tfi_x"
    assert "tfm_main(" in typed(encoder().manifest)
    page = (Path(__file__).parents[2] / "docs" / "c_api.md").read_text()
    assert all(str(c.number) in page for c in CODES)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = "random:bert?hidden_size=32&num_hidden_layers=1&num_attention_heads=2&intermediate_size=64&vocab_size=50"
    out = tmp_path / "libtiny.so"
    assert main(["compile", model, "-o", str(out), "--target", "cpu:avx2", "--json"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["libtiny.so", "libtiny.weights", "tiny.h"]
    assert main(["compile", model, "-o", str(tmp_path / "t.o"), "--target", "cpu:avx2"]) == 0
    assert (tmp_path / "t.o").read_bytes()[:4] == b"\x7fELF"
    capsys.readouterr()
    for words, text in (
        (["-o", str(tmp_path / "m.o"), "--target", "cpu:avx2,cpu:avx512"], "holds the code of one target"),
        (["-o", str(tmp_path / "m.tfc"), "--embed-weights"], "--embed-weights is for shared libraries"),
        (["-o", str(tmp_path / "no" / "m.so")], "does not exist"),
        (["-o", str(tmp_path / "m.dll")], "is no .tfc file"),
    ):
        assert main(["compile", model, *words]) == 2
        assert text in capsys.readouterr().err
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    assert main(["compile", model, "-o", str(tmp_path / "libnone.so")]) == 2
    said = capsys.readouterr().err
    assert "TFC6007" in said and "apt-get install gcc libc6-dev" in said and "no-such-compiler" in said
    monkeypatch.setenv("CC", "false")
    with pytest.raises(InternalError, match=r"'false .* failed"):
        Executable(encoder(), 1).save(tmp_path / "libfalse.so")
    assert not {"libnone.so", "libfalse.so", "false.h"} & {p.name for p in tmp_path.iterdir()}


# -- functions with states -----------------------------------------------------------------------------------------------------------


def test_functions_that_write_into_their_inputs_stay_out(folder: Path) -> None:
    sizes = "num_hidden_layers=1&hidden_size=32&intermediate_size=48&num_attention_heads=2&vocab_size=40"
    exe = tfir.compile(f"random:llama?{sizes}&architecture=LlamaForCausalLM", threads=1, target="cpu:avx2,cpu:avx512")
    made = build(exe.family[0], folder / "libllama.so")
    ids = np.arange(6).reshape(2, 3)
    (have,) = made.session(threads=1)(ids, np.ones_like(ids))
    assert (have == exe(ids, np.ones_like(ids))).all()
    exe.save(str(folder / "libboth.so"))
    for name in ("llama", "both"):
        header = (folder / f"{name}.h").read_text()
        assert "logits" in header and "prefill" not in header and "key_0" not in header


def test_a_library_needs_a_function_without_states(folder: Path) -> None:
    head = "module @m {\n  func @main(%x: f32[4], %s: f32[4]) -> (f32[4], f32[4]) states 1 {\n"
    text = f"{head}    %0 = add(%s, %x) : f32[4]\n    return %0, %s\n  }}\n}}\n"
    with pytest.raises(CompilerError) as caught:
        tfir.compile(parse_module(text)).save(str(folder / "libnone.so"))
    assert caught.value.codes == (Code.UNSUPPORTED_SHAPE,) and not list(folder.glob("libnone*"))
