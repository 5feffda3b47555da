"""``tfir.compile`` from Python: what it takes, what it gives, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import trustformers_ir as tfir
from trustformers_ir.frontend.trace import trace
from trustformers_ir.ir import functional as F

f32, i64 = tfir.f32, tfir.i64
RNG = np.random.default_rng(0)
SMALL = "random:bert?hidden_size=32&num_hidden_layers=2&num_attention_heads=4&intermediate_size=64&vocab_size=100&max_position_embeddings=64"


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def softmax_of_product(x: Any, y: Any) -> Any:
    return F.softmax(x @ y, -1)


def test_a_function_over_symbolic_tensors() -> None:
    exe = tfir.compile(softmax_of_product, (f32["n", 8], f32[8, "m"]))
    for n, m in ((1, 1), (3, 70), (64, 33)):
        x, y = normal(n, 8), normal(8, m)
        np.testing.assert_allclose(exe(x, y), torch.softmax(torch.from_numpy(x) @ torch.from_numpy(y), -1).numpy(), rtol=1e-5, atol=1e-6)


def test_arrays_stand_for_their_types() -> None:
    x, y = normal(4, 8), normal(8, 5)
    exe = tfir.compile(softmax_of_product, {"x": x, "y": y})
    assert [str(p.type) for p in exe.inputs] == ["f32[4, 8]", "f32[8, 5]"]
    assert exe(x=x, y=y).shape == (4, 5)


def test_a_module_is_not_changed() -> None:
    module = tfir.trace(softmax_of_product, f32["n", 8], f32[8, "m"])
    before = str(module)
    exe = tfir.compile(module)
    assert str(module) == before
    assert str(exe.module) != before


def test_a_compiled_module_agrees_with_the_interpreter() -> None:
    module = tfir.api.to_module(SMALL)
    exe = tfir.compile(SMALL)
    for batch, seq in ((1, 1), (2, 7), (3, 64)):
        inputs = {
            "input_ids": RNG.integers(0, 100, (batch, seq)),
            "attention_mask": np.ones((batch, seq), np.int64),
            "token_type_ids": np.zeros((batch, seq), np.int64),
        }
        for ours, reference in zip(_tuple(exe(**inputs)), _tuple(tfir.evaluate(module, **inputs)), strict=True):
            np.testing.assert_allclose(ours, reference, rtol=2e-5, atol=2e-5)


def _tuple(values: Any) -> tuple[np.ndarray, ...]:
    return values if isinstance(values, tuple) else (values,)


def test_inputs_with_defaults_may_be_left_out() -> None:
    exe = tfir.compile(SMALL)
    ids = RNG.integers(0, 100, (2, 7))
    whole = exe(input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    for outputs in (exe(input_ids=ids), exe(ids), exe(ids, token_type_ids=np.zeros_like(ids)), exe(torch.from_numpy(ids))):
        for a, b in zip(_tuple(outputs), _tuple(whole), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(tfir.CompilerError, match="1 of 3 inputs are missing: input_ids"):
        exe(attention_mask=np.ones_like(ids))


def test_everything_that_is_wrong_with_a_call_is_told_together() -> None:
    exe = tfir.compile(softmax_of_product, (f32["n", 8], f32[8, "m"]))
    with pytest.raises(tfir.CompilerError) as caught:
        exe(np.zeros((2, 9)), normal(7, 3))
    told = str(caught.value)
    assert "dtype f64" in told and "input 'x': axis 1 has size 8" in told and "input 'y': axis 0 has size 8" in told


def test_torch_in_torch_out() -> None:
    exe = tfir.compile(lambda x: (x * 2.0, x.sum(-1)), f32["n", 4])
    x = torch.randn(3, 4)
    doubled, total = exe(x)
    assert isinstance(doubled, torch.Tensor)
    torch.testing.assert_close(doubled, x * 2)
    torch.testing.assert_close(total, x.sum(-1))


def test_several_functions_are_several_entries() -> None:
    module = tfir.trace(lambda x: x + 1.0, f32["n"])
    other = tfir.trace(lambda x: x * 3.0, f32["n"]).functions["main"]
    other.name = "triple"
    module.add_function(other)
    exe = tfir.compile(module)
    x = normal(5)
    np.testing.assert_array_equal(exe(x), x + 1)
    np.testing.assert_array_equal(exe.run(x, entry="triple"), x * 3)


def test_saved_and_loaded(tmp_path: Path) -> None:
    exe = tfir.compile(SMALL)
    exe.save(tmp_path / "m.tfc")
    again = tfir.load(str(tmp_path / "m.tfc"))
    ids = RNG.integers(0, 100, (2, 9))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    for a, b in zip(_tuple(exe(**inputs)), _tuple(again(**inputs)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert str(again.module) == str(exe.module)
    tfir.compile(SMALL).save(tmp_path / "again.tfc")
    assert (tmp_path / "m.tfc").read_bytes() == (tmp_path / "again.tfc").read_bytes()


def test_running_an_artifact_needs_no_compiler(tmp_path: Path) -> None:
    tfir.compile(lambda x: x.exp(), f32["n"]).save(tmp_path / "m.tfc")
    program = (
        "import sys, numpy as np, trustformers_ir as tfir\n"
        f"y = tfir.load({str(tmp_path / 'm.tfc')!r})(np.zeros(3, np.float32))\n"
        "assert y.tolist() == [1, 1, 1]\n"
        "heavy = ['torch', 'onnx', 'transformers', 'triton', 'tokenizers']\n"
        "rooms = [f'trustformers_ir.{r}' for r in ('frontend', 'passes', 'codegen', 'models', 'compiler')]\n"
        "print([m for m in sys.modules if m in heavy or any(m == r or m.startswith(r + '.') for r in rooms)])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_text_with_its_weights_beside_it(tmp_path: Path) -> None:
    module = tfir.api.to_module(SMALL)
    (tmp_path / "m.tfir").write_text(str(module))
    with pytest.raises(tfir.CompilerError, match=r"bytes of \d+ weights are not there"):
        tfir.compile(tmp_path / "m.tfir")
    save_file({name: w.data for name, w in module.weights.items()}, tmp_path / "m.safetensors")
    ids = RNG.integers(0, 100, (2, 9))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    for a, b in zip(_tuple(tfir.compile(tmp_path / "m.tfir")(**inputs)), _tuple(tfir.compile(SMALL)(**inputs)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dims_that_are_not_dynamic_are_fixed() -> None:
    x, y = normal(4, 8), normal(8, 5)
    exe = tfir.compile(tfir.trace(softmax_of_product, f32["n", 8], f32[8, "m"]), {"x": x, "y": y}, dynamic=("n",))
    assert exe(normal(9, 8), y).shape == (9, 5)
    with pytest.raises(tfir.CompilerError):
        exe(x, normal(8, 6))


def test_an_index_out_of_range_names_op_and_line() -> None:
    exe = tfir.compile(lambda t, i: F.embedding(i, t), (f32[10, 4], i64["n"]))
    with pytest.raises(tfir.CompilerError, match=r"embedding.*12") as caught:
        exe(normal(10, 4), np.array([1, 12]))
    assert "test_compile.py" in str(caught.value)
    assert exe(normal(10, 4), np.array([1, 2])).shape == (2, 4)


def test_the_report_says_what_was_done() -> None:
    exe = tfir.compile(SMALL)
    report: Any = exe.report()
    assert {"seconds", "passes", "entries", "weight_bytes"} <= set(report)
    assert any(p["name"] == "fuse" and p["misses"] for p in report["passes"])
    assert report["entries"]["main"]["kernels"][0]["label"] and report["entries"]["main"]["last_call_ms"] is None
    exe(np.ones((1, 5), np.int64))
    measured: Any = exe.report(dims={"batch": 1, "seq": 5})
    assert measured["entries"]["main"]["last_call_ms"] > 0 and isinstance(measured["entries"]["main"]["arena_bytes"], int)


def test_stages_can_be_read() -> None:
    exe = tfir.compile(lambda x, w: F.gelu(F.linear(x, w)), (f32["n", 8], f32[16, 8]))
    assert "fused" in str(exe.module)
    assert "normal_cdf" in tfir.api.emit(exe, "kernels")
    assert "define void @tfir_entry_main" in tfir.api.emit(exe, "llvm")
    assert "tfir_entry_main:" in tfir.api.emit(exe, "asm")


def test_weights_are_those_of_the_moment_of_tracing() -> None:
    weight = np.ones((4, 40), np.float32)
    exe = tfir.compile(lambda x: x @ F.tensor(weight), f32["n", 4])
    weight[:] = 5
    assert exe(np.ones((1, 4), np.float32)).tolist() == [[4.0] * 40]


def test_a_random_model_in_another_dtype() -> None:
    exe = tfir.compile(SMALL, dtype="bf16")
    assert {str(p.type.dtype) for p in exe.outputs} == {"bf16"}


def test_an_artifact_is_compiled_already(tmp_path: Path) -> None:
    tfir.compile(lambda x: x.exp(), f32["n"]).save(tmp_path / "m.tfc")
    assert tfir.compile(tmp_path / "m.tfc")(np.zeros(2, np.float32)).tolist() == [1, 1]
    for options in ({"target": "cpu:avx2"}, {"dtype": "f16"}, {"dynamic": ("n",)}):
        with pytest.raises(tfir.CompilerError, match="compiled already"):
            tfir.compile(tmp_path / "m.tfc", **options)


@pytest.mark.parametrize("fn", [lambda x: x.T.exp(), lambda x: x @ x.T, lambda x: F.softmax(x.T, -1)])
def test_nothing_takes_no_time(fn: Any) -> None:
    module = trace(fn, f32["a", "b"], facts={"a": (0, None), "b": (0, None)})
    exe = tfir.compile(module)
    nothing = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (0, 1 << 34), (0, 0))
    assert exe(nothing).shape == exe.outputs[0].type.concrete({"a": 0, "b": 1 << 34})
    x = normal(3, 5)
    np.testing.assert_allclose(exe(x), tfir.evaluate(module, x), rtol=1e-5, atol=1e-6)


def test_empty_tensors() -> None:
    exe = tfir.compile(lambda x: (x @ F.zeros(4, 0), x[:, :0].sum(-1), x[:, 1:1].exp()), f32["n", 4])
    product, total, nothing = exe(normal(3, 4))
    assert product.shape == (3, 0) and total.tolist() == [0, 0, 0] and nothing.shape == (3, 0)


REFUSED = {
    "quantize": ({"quantize": "q4_9"}, "no quantization recipe 'q4_9'"),
    "partition": ({"partition": "tp2"}, "partition is not built yet"),
    "gpu": ({"target": "metal"}, "is not built yet"),
    "gpu of an unknown kind": ({"target": "cuda:sm_13"}, "there is no target 'cuda:sm_13'"),
    "gpu beside cpu": ({"target": "cuda:sm_90,cpu"}, "CPUs and GPUs"),
    "gpu twice": ({"target": "cuda:sm_90,cuda:sm_90"}, "names a GPU twice"),
    "target": ({"target": "cpu:z80"}, "z80"),
    "no target": ({"target": None}, "target is None"),
    "dtype": ({"dtype": "f16"}, "dtype chooses what a checkpoint computes in"),
    "dtype name": ({"dtype": "float17"}, "no dtype 'float17'"),
    "names": ({"dynamic": "n"}, "no list of names"),
    "dim": ({"dynamic": ("n", "time")}, "there is no dim 'time'"),
    "fixed": ({"dynamic": ("n",)}, "nothing says how large"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_requests_that_are_refused(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(tfir.CompilerError, match=message):
        tfir.compile(softmax_of_product, (f32["n", 8], f32[8, "m"]), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), 7, "nowhere/at/all", "m.onnx"])
def test_models_that_are_refused(model: Any) -> None:
    with pytest.raises(tfir.CompilerError):
        tfir.compile(model)


def test_complex_arithmetic_is_for_the_interpreter() -> None:
    with pytest.raises(tfir.CompilerError, match="c64"):
        tfir.compile(lambda x: x * x, tfir.c64["n"])
