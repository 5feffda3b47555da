"""Calling compiled modules: what goes in, what comes out, what is refused and how it says so."""

from __future__ import annotations

import re
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runtime_harness import BATCH, add, compiled, encoder, encoder_inputs, encoder_module, encoder_reference, f32

import trustformers_ir as tfir
from trustformers_ir.ir import machine
from trustformers_ir.ir.abi import QUANTIZATION_KEY, CompiledModule
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import SymbolFact, symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.text import parse_module
from trustformers_ir.runtime import artifact, entry_call
from trustformers_ir.runtime.executable import Executable


@pytest.fixture(scope="module")
def adder() -> Executable:
    return Executable(add(), 2)


@pytest.fixture(scope="module")
def model() -> Executable:
    return Executable(encoder(), 2)


def numbers(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) + 1).astype(dtype)


def refused(code: Code, call: Any, *texts: str) -> CompilerError:
    with pytest.raises(CompilerError) as caught:
        call()
    assert caught.value.codes[0] is code, caught.value
    for text in texts:
        assert text in str(caught.value)
    return caught.value


# --- calls -------------------------------------------------------------------------------------------------------------------------


def test_one_output_is_an_array(adder: Executable) -> None:
    x, y = numbers(3, 5), numbers(3, 5) * 2
    out = adder(x, y)
    assert isinstance(out, np.ndarray) and out.dtype == np.float32
    np.testing.assert_array_equal(out, x + y)
    np.testing.assert_array_equal(adder(x, y=y), x + y)
    np.testing.assert_array_equal(adder(y=y, x=x), x + y)


def test_several_outputs_are_a_tuple(model: Executable) -> None:
    for batch, seq in ((1, 1), (3, 11), (64, 128), (2, 7)):
        ids, scale = encoder_inputs(batch, seq)
        probabilities, pooled = model(ids, scale)
        want = encoder_reference(ids, float(scale))
        assert probabilities.shape == (batch, seq, 40) and pooled.shape == (batch, 40)
        np.testing.assert_allclose(probabilities, want[0], atol=1e-6)
        np.testing.assert_allclose(pooled, want[1], atol=1e-6)


def test_outputs_are_fresh_and_inputs_untouched(adder: Executable) -> None:
    x = numbers(2, 3)
    first = adder(x, x)
    kept = first.copy()
    adder(x * 7, x)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(x, numbers(2, 3))


def test_what_it_says_of_itself(model: Executable) -> None:
    assert [p.name for p in model.inputs] == ["ids", "scale"]
    assert [(p.name, str(p.type)) for p in model.outputs] == [("probabilities", "f32[batch, seq, 40]"), ("pooled", "f32[batch, 40]")]
    assert model.symbols == {"batch": SymbolFact(1, 64), "seq": SymbolFact(1, 128)}
    assert model.entries == ("main",)
    assert "Executable encoder(ids: i64[batch, seq], scale: f32[])" in repr(model)
    assert model.graph.startswith("module @encoder")


def test_the_graph_is_read_with_its_weights(tmp_path: Path) -> None:
    refused(Code.USAGE, lambda: Executable(add(), 1).module, "graph")
    exe = Executable(encoder(), 1, parse=parse_module)
    exe.save(tmp_path / "e.tfc")
    modules = [exe.module, artifact.load(tmp_path / "e.tfc", parse=parse_module).module]
    modules.append(tfir.load(str(tmp_path / "e.tfc")).module)
    modules.append(tfir.api.to_module(str(tmp_path / "e.tfc")))
    inputs = encoder_inputs()
    for module in modules:
        assert str(module) == encoder().graph
        for have, want in zip(evaluate(module, *inputs), exe(*inputs), strict=True):
            np.testing.assert_allclose(have, want, atol=1e-6)


def test_report(model: Executable) -> None:
    report: Any = model.report()
    entry = report["entries"]["main"]
    assert report["threads"] == 2 and report["passes"] == ["none"] and report["weight_bytes"] == sum(w.bytes for w in encoder().manifest.weights)
    assert any("linear" in k["label"] for k in entry["kernels"]) and "batch" in entry["arena_bytes"]
    dims: Any = model.report({"batch": 2, "seq": 8})
    entry = dims["entries"]["main"]
    assert entry["arena_bytes"] > 0 and entry["flops"] == sum(k["flops"] for k in entry["kernels"]) > 2 * 2 * 8 * 24 * 40


@pytest.mark.parametrize(
    "text",
    [
        *("", "[", "[]", "3", "[" * 100_000, '{"recipe":"int8","int8":1}', '{"recipe":"a{b","products":[]}'),
        *('{"recipe":"int8","int8":1,"products":[3]}', '{"recipe":"int8","int8":"1","products":[]}'),
    ],
    ids=range(9),
)
def test_a_report_of_quantization_that_is_none_is_left_out(text: str) -> None:
    module = encoder_module()
    exe = Executable(replace(module, manifest=replace(module.manifest, metadata={QUANTIZATION_KEY: text})), 1)
    assert "quantization" not in exe.report()


def test_several_entries() -> None:
    module = add()
    entry = module.manifest.entries[0]
    both = replace(module.manifest, entries=(entry, replace(entry, name="again")))
    exe = Executable(replace(module, manifest=both), 1)
    x = numbers(2, 2)
    np.testing.assert_array_equal(exe.run(x, x, entry="again"), exe.run(x, x))
    refused(Code.UNKNOWN_ENTRY, lambda: exe.run(x, x, entry="other"), "main, again")


def test_weights_are_laid_out_once_and_as_stored() -> None:
    module = encoder_module()
    asked: list[str] = []

    def counted(name: str) -> Any:
        return lambda: (asked.append(name), module.weights[name]())[1]

    exe = Executable(replace(module, weights={name: counted(name) for name in module.weights}), 1)
    assert not asked
    exe(*encoder_inputs())
    exe(*encoder_inputs(2, 2))
    assert sorted(asked) == ["bias", "dense", "table"]
    for name, make in module.weights.items():
        np.testing.assert_array_equal(exe.weight(name), make())
        assert not exe.weight(name).flags.writeable and exe.weight(name).ctypes.data % 4096 == 0
    with pytest.raises(KeyError):
        exe.weight("other")


def test_an_executable_that_is_dropped_goes_away() -> None:
    exe = Executable(encoder_module(), 2)
    exe(*encoder_inputs(64, 128))
    alive = weakref.ref(exe)
    del exe
    assert alive() is None


# --- inputs ------------------------------------------------------------------------------------------------------------------------


def test_layouts_of_inputs(adder: Executable) -> None:
    x = numbers(4, 6)
    odd = np.frombuffer(b"\0" + x.tobytes(), np.float32, 24, 1).reshape(4, 6)
    big = x.astype(">f4")
    read_only = x.copy()
    read_only.flags.writeable = False
    for y in (np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2], x[::-1][::-1], odd, big, read_only, np.broadcast_to(x, x.shape), x.view(np.matrix)):
        np.testing.assert_array_equal(adder(x, y), x + x)
    np.testing.assert_array_equal(adder(x[:, ::-2], x[:, ::-2]), 2 * x[:, ::-2])


def test_lists_and_numbers(adder: Executable, model: Executable) -> None:
    np.testing.assert_array_equal(adder([[1, 2.5]], ((3, 4),)), [[4, 6.5]])
    np.testing.assert_array_equal(adder([[np.float32(0.1)]], [[0]]), [[np.float32(0.1)]])
    assert np.isnan(adder([[float("nan")]], [[0.0]])[0, 0])
    assert adder([[float("inf")]], [[0.0]])[0, 0] == np.inf
    model([[1, 2], [3, 4]], 0.25)
    model([[1, 2], [3, 4]], np.float32(0.1))
    refused(Code.INPUT_DTYPE, lambda: model([[1]], 0.1), "0.1, which is not a number of f32")
    refused(Code.INPUT_DTYPE, lambda: model([[1.0]], 0.5), "holds float where i64 is taken")
    refused(Code.INPUT_DTYPE, lambda: model([[True]], 0.5), "holds bool where i64 is taken")
    refused(Code.INPUT_DTYPE, lambda: model([[2**63]], 0.5), "9223372036854775808")
    refused(Code.INPUT_DTYPE, lambda: model([[1]], 10**5000), "a very large number")
    refused(Code.INPUT_DTYPE, lambda: model([[1]], 1e300), "not a number of f32")
    refused(Code.INPUT_DTYPE, lambda: model([["1"]], 0.5), "holds str")
    refused(Code.INPUT_DTYPE, lambda: model("text", 0.5), "is a str")
    refused(Code.INPUT_DTYPE, lambda: model(None, 0.5), "NoneType")
    refused(Code.INPUT_SHAPE, lambda: model([[1, 2], [3]], 0.5), "different lengths")


def test_wrong_inputs(adder: Executable, model: Executable) -> None:
    x = numbers(2, 3)
    refused(Code.INPUT_COUNT, lambda: adder(x), "1 of 2 inputs are missing: y", "x: f32[batch, seq]")
    refused(Code.INPUT_COUNT, lambda: adder(), "x, y")
    refused(Code.INPUT_COUNT, lambda: adder(x, x, x), "3 inputs were given, 2 are taken")
    refused(Code.INPUT_NAME, lambda: adder(x, z=x), "no input 'z'")
    refused(Code.INPUT_NAME, lambda: adder(x, x=x), "given twice")
    both = refused(Code.INPUT_DTYPE, lambda: adder(x.astype(np.float64), x.astype(np.int32)), "'x' has the dtype f64; f32 is taken")
    assert len(both.diagnostics) == 2
    refused(Code.INPUT_DTYPE, lambda: adder(x, np.array(["a"])), "<U1")
    refused(Code.INPUT_DTYPE, lambda: adder(x, np.array([{}])), "object")
    refused(Code.INPUT_SHAPE, lambda: adder(x, x[0]), "rank 2", "[3]")
    refused(Code.DIM_CONFLICT, lambda: adder(x, numbers(2, 4)), "seq = 3", "[2, 4]")
    refused(Code.DIM_RANGE, lambda: adder(numbers(65, 1), numbers(65, 1)), "'batch' is 65", "[1, 64]")
    refused(Code.DIM_RANGE, lambda: adder(numbers(0, 1), numbers(0, 1)), "'batch' is 0")
    refused(Code.INPUT_SHAPE, lambda: model(np.zeros((2, 2), np.int64), np.zeros(1, np.float32)), "rank 0")
    np.testing.assert_array_equal(adder(x, x), 2 * x)


def test_fixed_sizes_and_divisors() -> None:
    fixed = Executable(compiled(lambda x: x * 2, f32["n", 4], facts={"n": SymbolFact(8, 32, 8)}), 1)
    np.testing.assert_array_equal(fixed(numbers(16, 4)), numbers(16, 4) * 2)
    refused(Code.INPUT_SHAPE, lambda: fixed(numbers(16, 5)), "axis 1 has size 4")
    refused(Code.DIM_RANGE, lambda: fixed(numbers(12, 4)), "'n' is 12", "% 8")


def test_empty_arrays() -> None:
    exe = Executable(compiled(lambda x: (x + 1, x.sum(0)), f32["n", 3], facts={"n": (0, 100)}), 2)
    for _ in range(2):
        rows, total = exe(np.zeros((0, 3), np.float32))
        assert rows.shape == (0, 3) and total.tolist() == [0, 0, 0]
    assert exe(numbers(2, 3))[1].tolist() == [5, 7, 9]


def test_dtypes_pass_through() -> None:
    for dtype in (DType.f16, DType.bf16, DType.f64, DType.i8, DType.u16, DType.i32, DType.u64):
        exe = Executable(compiled(lambda x: x + x, dtype["n"], facts={"n": (1, 64)}), 1)
        x = np.arange(9).astype(dtype.numpy)
        out = exe(x)
        assert out.dtype == dtype.numpy
        np.testing.assert_array_equal(out, x + x)
        assert exe([1, 2, 3]).tolist() == [2, 4, 6]
    exe = Executable(compiled(lambda x: ~x, DType.bool["n"], facts={"n": (1, 64)}), 1)
    assert exe([True, False]).tolist() == [False, True]
    refused(Code.INPUT_DTYPE, lambda: exe([1, 0]), "holds int where bool is taken")


def test_out_of_range_indices_leave_it_usable(model: Executable) -> None:
    ids, scale = encoder_inputs()
    want = model(ids, scale)
    for bad, value in ((50, 50), (-51, -51), (2**62, 2**62)):
        broken = ids.copy()
        broken[1, 2] = bad
        error = refused(Code.INDEX_OUT_OF_RANGE, lambda b=broken: model(b, scale), f"is {value}", "size of 50", "embedding")
        where = error.diagnostics[0].where
        assert where.op == "embedding" and where.file is not None and where.file.endswith("runtime_harness.py") and where.line
        for a, b in zip(model(ids, scale), want, strict=True):
            np.testing.assert_array_equal(a, b)
    ids[0, 0] = -1
    model(ids, scale)


# --- torch -------------------------------------------------------------------------------------------------------------------------


def test_tensors_in_tensors_out(model: Executable, adder: Executable) -> None:
    ids, scale = encoder_inputs()
    want = model(ids, scale)
    out = model(torch.from_numpy(ids), torch.tensor(0.25))
    assert all(isinstance(t, torch.Tensor) and t.dtype is torch.float32 for t in out)
    for t, a in zip(out, want, strict=True):
        np.testing.assert_array_equal(t.numpy(), a)
    x = torch.arange(12.0).reshape(3, 4).requires_grad_()
    assert torch.equal(adder(x, x.detach().T.contiguous().T), x + x)
    assert isinstance(adder(x, x.detach().numpy()), torch.Tensor)
    refused(Code.INPUT_DTYPE, lambda: adder(x.double(), x), "'x' has the dtype f64")
    refused(Code.INPUT_DTYPE, lambda: adder(x, torch.empty(3, 4, device="meta")), "device meta")
    refused(Code.INPUT_DTYPE, lambda: adder(x, x.detach().to_sparse()), "sparse")
    refused(Code.INPUT_SHAPE, lambda: adder(x, x[0]), "rank 2")


def test_tensors_of_every_dtype() -> None:
    for dtype in (DType.bool, DType.f16, DType.bf16, DType.i8, DType.u8, DType.i32):
        fn = (lambda x: ~x) if dtype is DType.bool else (lambda x: x + x)
        x = torch.arange(2).to(getattr(torch, {"bool": "bool", "bf16": "bfloat16"}.get(dtype.name, dtype.numpy.name)))
        out = Executable(compiled(fn, dtype["n"], facts={"n": (1, 64)}), 1)(x)
        assert out.dtype is x.dtype and torch.equal(out, fn(x))


def test_tensors_are_not_copied(monkeypatch: pytest.MonkeyPatch, adder: Executable) -> None:
    seen: list[list[int]] = []
    run = Executable._run

    def spy(self: Executable, entry: Any, plan: Any, inputs: list[int], outputs: list[int]) -> tuple[int, int]:
        seen.append([*inputs, *outputs])
        return run(self, entry, plan, inputs, outputs)

    monkeypatch.setattr(Executable, "_run", spy)
    x, y = torch.ones(2, 3), torch.ones(2, 3)
    out = adder(x, y)
    assert seen == [[x.data_ptr(), y.data_ptr(), out.data_ptr()]]
    a = np.ones((2, 3), np.float32)
    result = adder(a, a)
    assert seen[1] == [a.ctypes.data, a.ctypes.data, result.ctypes.data]


# --- memory ------------------------------------------------------------------------------------------------------------------------


def entry_with(module: CompiledModule, **changes: Any) -> CompiledModule:
    entry = replace(module.manifest.entries[0], **changes)
    return replace(module, manifest=replace(module.manifest, entries=(entry,)))


@pytest.mark.parametrize("what", ["arena_bytes", "scratch_bytes"])
@pytest.mark.parametrize("size", [1 << 50, 1 << 62, 1 << 70, -1, symbol("batch") * (1 << 61), 0 - symbol("batch")])
def test_absurd_sizes_are_refused(what: str, size: Any) -> None:
    exe = Executable(entry_with(add(), **{what: size}), 2)
    refused(Code.OUT_OF_MEMORY, lambda: exe(numbers(2, 2), numbers(2, 2)), "needs")


def test_output_too_large() -> None:
    wide = f32["batch", symbol("seq") * (1 << 50)]
    module = entry_with(add(), outputs=(replace(add().manifest.entries[0].outputs[0], type=wide),))
    refused(Code.OUT_OF_MEMORY, lambda: Executable(module, 1)(numbers(2, 2), numbers(2, 2)), "output")


def test_sizes_that_do_not_compute() -> None:
    nothing = symbol("seq") - symbol("seq") * symbol("batch") * 1
    module = entry_with(add(), arena_bytes=100 // (nothing + symbol("seq") * symbol("batch") - symbol("seq") + symbol("batch") - 1))
    refused(Code.INPUT_SHAPE, lambda: Executable(module, 1)(numbers(1, 2), numbers(1, 2)), "cannot be computed")
    module = entry_with(add(), arena_bytes=symbol("other"))
    refused(Code.INPUT_SHAPE, lambda: Executable(module, 1)(numbers(1, 2), numbers(1, 2)), "'other'")


def test_the_arena_grows_and_is_kept(model: Executable) -> None:
    exe = Executable(encoder(), 1)
    exe(*encoder_inputs(1, 4))
    small = exe._arena.size
    exe(*encoder_inputs(64, 128))
    large, address = exe._arena.size, exe._arena.address
    assert large > small and address % 64 == 0
    exe(*encoder_inputs(2, 4))
    assert (exe._arena.size, exe._arena.address) == (large, address)


def test_memory_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.memory.cache_clear()
    monkeypatch.setattr("trustformers_ir.runtime.memory.memory", lambda: 1 << 62)
    exe = Executable(entry_with(add(), arena_bytes=1 << 60), 1)
    refused(Code.OUT_OF_MEMORY, lambda: exe(numbers(2, 2), numbers(2, 2)), "refuses")


def test_shapes_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_call, "MAX_PLANS", 4)
    exe = Executable(add(), 1)
    for n in range(1, 20):
        np.testing.assert_array_equal(exe(numbers(n, n), numbers(n, n)), 2 * numbers(n, n))
        assert len(exe._calls["main"].plans) <= 4


# --- machines ----------------------------------------------------------------------------------------------------------------------


def test_code_for_another_machine() -> None:
    target = add().manifest.target
    for changed, text in (
        (replace(target, features=(*target.features, "quantum")), "quantum"),
        (replace(target, triple="riscv64-unknown-linux-gnu"), "riscv64"),
        (replace(target, triple=target.triple.replace("linux", "windows")), "windows"),
    ):
        exe = Executable(replace(add(), manifest=replace(add().manifest, target=changed)), 1)
        refused(Code.ARTIFACT_TARGET, lambda e=exe: e(numbers(1, 1), numbers(1, 1)), text)
    old = Executable(replace(add(), manifest=replace(add().manifest, abi=99)), 1)
    refused(Code.ARTIFACT_VERSION, lambda: old(numbers(1, 1), numbers(1, 1)), "99")


def test_code_for_a_smaller_machine_runs() -> None:
    exe = Executable(compiled(lambda x: x.exp(), f32["batch"], facts={"batch": BATCH["batch"]}, target="cpu:avx2"), 1)
    np.testing.assert_allclose(exe([0, 1]), np.exp([0, 1]), rtol=1e-6)


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/runtime'); from runtime_harness import *\n"
        "from trustformers_ir.runtime.executable import Executable\n"
        "Executable(add(), 1)([[1]], [[2]]); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr
    assert re.fullmatch(r"\s*", run.stderr)


def test_ids_of_other_integer_widths_are_refused(model: Executable) -> None:
    refused(Code.INPUT_DTYPE, lambda: model(np.zeros((1, 1), np.int32), np.float32(1)), "i32; i64 is taken")
