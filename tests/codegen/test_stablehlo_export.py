"""StableHLO files: every op on its samples through the dialect's verifier and XLA, whole models, sizes that only the run knows, ``tfc verify``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax", reason="pip install jax")

from export_harness import VIT, Feed, refusals, same_results, sampled, samples, text_agrees, text_models, vision_agrees

import trustformers_ir as tfir
from trustformers_ir.codegen.export.stablehlo.emitter import RULES
from trustformers_ir.codegen.export.stablehlo.write import write_stablehlo
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.conformance import Case
from trustformers_ir.ir.core import Block, Function, Module, Weight
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import SymbolFact, symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import argument_names
from trustformers_ir.ir.tracing import current_trace
from trustformers_ir.ir.types import TensorType
from trustformers_ir.tools.agreement.readers import open_source, open_subject
from trustformers_ir.tools.agreement.stablehlo_file import StableHloFile
from trustformers_ir.tools.cli import main

ROOT = Path(__file__).parents[2]
#: relative to the largest magnitude of a result
BOUNDS = {DType.f64: 5e-14, DType.f32: 2e-6, DType.f16: 1e-3, DType.bf16: 1e-2, DType.f8e4m3: 0.07, DType.c64: 2e-6, DType.c128: 5e-14}
#: forms of ops that a file cannot say
KNOWN = ("is the size of no input", "is packed")
FEW = {"attention": 3, "cast": 3, "linear": 3, "matmul": 3, "einsum": 3}  # samples that are run by default, one of other ops; `-m long` runs all
MODELS = text_models(1)


def opened(path: Path) -> StableHloFile:
    """Parsed and verified."""
    return StableHloFile.open(str(path))


def compare(case: Case, path: Path) -> None:
    module = case.module()
    write_stablehlo(str(path), module)
    got = opened(path).xla(dict(zip(argument_names(module.main), case.inputs, strict=True)))
    same_results(got, case.expected(), case.results, BOUNDS)


@pytest.mark.parametrize("mnemonic", sampled(RULES))
def test_samples(mnemonic: str, tmp_path: Path) -> None:
    samples(mnemonic, compare, tmp_path / "m.mlir", KNOWN, FEW.get(mnemonic, 1))


@pytest.mark.long
@pytest.mark.parametrize("mnemonic", sampled(RULES))
def test_all_samples(mnemonic: str, tmp_path: Path) -> None:
    samples(mnemonic, compare, tmp_path / "m.mlir", KNOWN)


def compare_by_interpreter(case: Case, path: Path) -> None:
    module = case.module()
    write_stablehlo(str(path), module)
    got = opened(path).interpreter(dict(zip(argument_names(module.main), case.inputs, strict=True)))
    same_results(got, case.expected(), case.results, BOUNDS)


@pytest.mark.long
@pytest.mark.parametrize("mnemonic", [m for m in sampled(RULES) if m not in ("conj", "imag", "make_complex", "real")])  # it takes no complex numbers
def test_the_interpreter_on_samples(mnemonic: str, tmp_path: Path) -> None:
    """The definition of the dialect itself, on the first sample of each op."""
    samples(mnemonic, compare_by_interpreter, tmp_path / "m.mlir", KNOWN, 1)


def exported(name: str, path: Path) -> StableHloFile:
    tfir.export(MODELS[name], str(path))
    file = opened(path)
    assert re.search(r"%input_ids: tensor<\?x\?xi64>", file.text)
    return file


@pytest.mark.parametrize("name", MODELS)
def test_text_models(name: str, tmp_path: Path) -> None:
    """One file; two sizes of some, of all with `-m long`."""
    sizes = ((1, 1), (3, 11)) if name in ("bert", "gemma2") else ((3, 11),)
    text_agrees(MODELS[name], exported(name, tmp_path / "m.mlir").xla, 1e-5, sizes)


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_text_models_at_sizes(name: str, tmp_path: Path) -> None:
    text_agrees(MODELS[name], exported(name, tmp_path / "m.mlir").xla, 1e-5, ((1, 1), (2, 7), (1, 40)))


def test_a_vision_model(tmp_path: Path) -> None:
    tfir.export(VIT, str(tmp_path / "m.mlir"))
    vision_agrees(opened(tmp_path / "m.mlir").xla, 1e-5)


def test_16_bits(tmp_path: Path) -> None:
    """Sums are of f32, results are rounded once."""
    path = tmp_path / "m.mlir"
    made = tfir.export(MODELS["llama"], str(path), dtype="bf16")
    assert made.kinds == {"bf16": 12}
    source = opened(path).text
    assert re.search(r"dot_general .*bf16>\) -> tensor<[^>]*xf32>", source)
    text_agrees(MODELS["llama"], lambda feed: [x.astype(np.float32) for x in opened(path).xla(feed)], 3e-2)


@pytest.mark.long
def test_the_real_model(minilm: Path, tmp_path: Path) -> None:
    path, exe, ids = tmp_path / "m.mlir", tfir.compile(str(minilm)), np.random.default_rng(0).integers(1000, 20000, (3, 40))
    mask = np.ones_like(ids)
    mask[1, 20:] = 0
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
    made = tfir.export(str(minilm), str(path))
    assert made.bytes < 2.01 * (minilm / "model.safetensors").stat().st_size
    for g, w in zip(opened(path).xla(feed), exe(**feed), strict=True):
        assert np.abs(g - w).max() <= 1e-5 * np.abs(w).max()


def _ports(x: Any, y: Any) -> Any:
    n, m = x.shape[0], y.shape[0]
    z = F.concat([x, x], 0).reshape(2, n, 4)
    return {"z": z, "twice": z, "x": x, "n": F.tensor(n * 2 + m), "row": F.arange((n + m) // 2), "part": y[1 : m - 1], "rest": F.tensor(m % n)}


def test_sizes_that_are_computed(tmp_path: Path) -> None:
    """Symbols out of 3 s + 2, sums, quotients and remainders of sizes, outputs that are inputs or handed out twice: from one file at two sizes."""
    module = tfir.trace(_ports, tfir.f32["n", 4], tfir.f32["3 * s + 2", 2])
    write_stablehlo(str(tmp_path / "m.mlir"), module)
    file = opened(tmp_path / "m.mlir")
    for n, m in ((5, 11), (2, 8), (7, 2)):
        x, y = np.arange(4 * n, dtype=np.float32).reshape(n, 4), np.ones((m, 2), np.float32)
        z, twice, same, count, row, part, rest = file.xla({"x": x, "y": y})
        np.testing.assert_array_equal(z, np.concatenate([x, x]).reshape(2, n, 4))
        np.testing.assert_array_equal(z, twice)
        np.testing.assert_array_equal(same, x)
        assert count == 2 * n + m and row.tolist() == list(range((n + m) // 2)) and part.shape == (m - 2, 2) and rest == m % n


def test_scans_of_any_length(tmp_path: Path) -> None:
    module = tfir.trace(lambda x: x.cumsum(1), tfir.f32["b", "n"])
    module.facts.declare("n", SymbolFact(0))
    write_stablehlo(str(tmp_path / "m.mlir"), module)
    file = opened(tmp_path / "m.mlir")
    for b, n in ((1, 1), (3, 2), (2, 33), (2, 0)):
        x = np.random.default_rng(n).standard_normal((b, n)).astype(np.float32)
        (got,) = file.xla({"x": x})
        np.testing.assert_allclose(got, np.cumsum(x, 1), atol=1e-5)


def test_the_same_model_gives_the_same_text(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.mlir" for n in range(2)]
    for path in paths:
        tfir.export(MODELS["gpt2"], str(path))
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_constants_of_every_dtype(tmp_path: Path) -> None:
    """Splats, lists, bytes, nothing, what is no number: what comes back are the same bits."""
    random = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}
    for dtype in DType:
        for shape in ((), (3,), (5, 7), (0, 2)):
            a = random.integers(0, 2, shape) if dtype is DType.bool else random.integers(0, 100, shape)
            weights[f"{dtype}.{len(shape)}{len(shape) and shape[0]}"] = np.asarray(a).astype(dtype.numpy)
    for dtype in (DType.f16, DType.bf16, DType.f32, DType.f64, DType.c64, DType.c128):
        weights[f"{dtype}.odd"] = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-7, 3.1], dtype.numpy)
        for n, value in enumerate((np.nan, -np.inf, -0.0, 1e-7, 1 / 3)):
            weights[f"{dtype}.same{n}"] = np.full((2, 2), value, dtype.numpy)
    weights["large"] = random.standard_normal((1500, 1000)).astype(np.float32)
    module, block = Module("weights"), Block()
    module.add_function(Function("main", block))
    build = Builder(module, block)
    values = []
    for name, array in weights.items():
        module.add_weight(Weight(name, TensorType(array.shape, DType.from_numpy(array.dtype)), array))
        values.append(build.create(ops.WeightOp(name)).result)
    build.create(ops.Return(), *values)
    write_stablehlo(str(tmp_path / "m.mlir"), module)
    for name, got, want in zip(weights, opened(tmp_path / "m.mlir").xla({}), weights.values(), strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape, name
        same = np.ascontiguousarray(got).tobytes() == want.tobytes()
        assert same or (np.isnan(want).any() and np.array_equal(np.isnan(got), np.isnan(want))), name


def test_names_and_places_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.mlir"
    tfir.export(lambda x: F.gelu(x), str(path), example_inputs=[tfir.f32["n", 3]])
    source = path.read_text()
    assert "// x: f32[n, 3]\n" in source and '%x: tensor<?x3xf32> loc("x")' in source
    (place,) = re.findall(r'#loc\d+ = loc\("0:gelu\.0"\((#loc\d+)\)\)', source)
    (file, line) = re.findall(rf'{place} = loc\("([^"]*)":(\d+):0\)', source)[0]
    assert Path(file).name == Path(__file__).name
    assert "F.gelu(x), str(path)" in Path(__file__).read_text().splitlines()[int(line) - 1]
    tfir.export(MODELS["bert"], str(path))
    assert re.search(r'%embeddings\.word_embeddings\.weight = .* loc\("embeddings\.word_embeddings\.weight"\)', path.read_text())


def test_all_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.mlir"
    path.write_bytes(b"before")

    def positions(mask: Any, name: str) -> Any:
        current_trace().module.facts.declare(name, SymbolFact(0))
        return mask._emit(ops.NonZero(symbol(name)))

    def f(x: Any) -> Any:
        return positions(x[0] > 0, "some"), positions(x[1] > 0, "others")

    refusals(path, f, ["nonzero", "nonzero"], __file__)
    for options in ({"opset": 18}, {"quantize": "int8"}):
        with pytest.raises(CompilerError) as caught:
            tfir.export(MODELS["bert"], str(path), **options)  # type: ignore[arg-type]
        assert caught.value.diagnostics[0].code is Code.USAGE


def test_the_interpreter_agrees(tmp_path: Path) -> None:
    """The dialect's own definition, on a model of all that text models are made of, and where numpy lacks the dtype."""
    path = tmp_path / "m.mlir"
    tfir.export(MODELS["gemma2"], str(path))
    text_agrees(MODELS["gemma2"], opened(path).interpreter, 1e-5, ((2, 5),))
    tfir.export(lambda x: (x * 2, x > 0), str(path), example_inputs=[tfir.bf16[3]])
    x = np.array([1, -2, 3], DType.bf16.numpy)
    double, above = opened(path).interpreter({"x": x})
    assert double.dtype == x.dtype and double.tolist() == [2, -4, 6] and above.tolist() == [True, False, True]
    tfir.export(lambda x: x @ x.mT, str(path), example_inputs=[tfir.f32[2, 0]])
    empty = opened(path)
    assert empty.xla({"x": np.ones((2, 0), np.float32)})[0].tolist() == [[0, 0], [0, 0]]
    with pytest.raises(CompilerError) as caught:  # of this it aborts
        empty.interpreter({"x": np.ones((2, 0), np.float32)})
    assert caught.value.diagnostics[0].code is Code.CHECK_FAILED and "LLVM ERROR" in caught.value.diagnostics[0].message
    tfir.export(lambda x: x * 2, str(path), example_inputs=[tfir.c64[3]])
    with pytest.raises(CompilerError) as caught:
        opened(path).interpreter({"x": np.ones(3, np.complex64)})
    assert "complex" in caught.value.diagnostics[0].message


def test_verify_compares_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the model that they were made of; one of another epsilon differs, and the operation that does is named with its line."""
    source, path, found = str(tmp_path / "m.tfir"), str(tmp_path / "m.mlir"), tmp_path / "found.json"

    def f(x: Any) -> Any:
        return F.softmax(F.tanh(x) @ F.rms_norm(x.exp(), eps=0.25).mT, -1)

    Path(source).write_text(str(tfir.trace(f, tfir.f32["n", 8])))
    assert main(["export", source, "-o", path]) == 0
    assert main(["verify", source, path, "--probe", "1"]) == 0
    for by in ("xla", "stablehlo"):
        assert [r.by for r in open_subject(path, open_source(source), False, [by]).runs] == [by]
    Path(path).write_text(re.sub(r"dense<0\.25>", "dense<0.5>", Path(path).read_text()))
    assert main(["verify", source, path, "--probe", "1", "-o", str(found)]) == 1
    (file,) = json.loads(found.read_text())["files"]
    assert file["by"] == "xla" and [c["operation"] for c in file["culprits"]] == ["rms_norm"]
    assert main(["verify", path, source]) == 2
    assert "cannot be the first" in capsys.readouterr().err


def test_what_is_no_such_file(tmp_path: Path) -> None:
    path = tmp_path / "m.mlir"
    for content in ("", "module {}", "nonsense", "func.func @other() { return }", "func.func @main(%x: i32) { return }"):
        path.write_text(content)
        with pytest.raises(CompilerError) as caught:
            opened(path)
        assert caught.value.diagnostics[0].code is Code.UNREADABLE and str(path) in caught.value.diagnostics[0].message


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing needs no jax; executing says how to install it."""
    for name in ("jax", "jax._src", "jax._src.interpreters", "jaxlib", "jaxlib.mlir"):
        monkeypatch.setitem(sys.modules, name, None)
    tfir.export(lambda x: x + 1, str(tmp_path / "m.mlir"), example_inputs=[tfir.f32["n"]])
    with pytest.raises(CompilerError) as caught:
        opened(tmp_path / "m.mlir")
    problem = caught.value.diagnostics[0]
    assert problem.code is Code.MISSING_DEPENDENCY and "trustformers_ir[stablehlo]" in str(problem.help)


def test_another_s_file(tmp_path: Path) -> None:
    """Text that others wrote is executed too; it names no operations of a graph."""
    path = tmp_path / "m.mlir"
    path.write_text(
        "module @jit_f {\nfunc.func public @main(%arg0: tensor<2xf32>) -> (tensor<2xf32> {jax.result_info = \"\"}) {\n"
        "%0 = stablehlo.sine %arg0 : tensor<2xf32>\nreturn %0 : tensor<2xf32>\n}\n}\n"
    )  # fmt: skip
    feed: Feed = {"arg0": np.array([0.0, 1.0], np.float32)}
    file = opened(path)
    np.testing.assert_allclose(file.xla(feed)[0], np.sin(feed["arg0"]), rtol=1e-6)
    assert file.xla_values(feed) == {}


def test_the_page_lists_every_op() -> None:
    """docs/stablehlo.md names what can be written."""
    page = (ROOT / "docs" / "stablehlo.md").read_text()
    listed = page.split("## Ops\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(kind.mnemonic for kind in RULES)
