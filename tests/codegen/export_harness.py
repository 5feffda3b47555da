"""What the tests of exported graphs share: samples of ops through a writer and a runner, and text models at two sizes.

A writer says what it writes and executes; everything is compared with the reference semantics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.ir.conformance import Case, cases
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.interpreter import argument_names
from trustformers_ir.ir.schema import OPS, Op
from trustformers_ir.ir.types import Panels, TensorType

Feed = dict[str, np.ndarray]


def text_models(layers: int) -> dict[str, str]:
    """Ten families of text models with so many layers."""
    falcon = "hidden_size=32&num_attention_heads=4&vocab_size=99&alibi=true&architecture=FalconForCausalLM"
    sizes = f"num_hidden_layers={layers}&hidden_size=32&intermediate_size=48&num_attention_heads=4&vocab_size=99"
    return {
        "bert": f"random:bert?{sizes}",
        "llama": f"random:llama?{sizes}&num_key_value_heads=2&architecture=LlamaForCausalLM",
        "mistral": f"random:mistral?{sizes}&num_key_value_heads=2&architecture=MistralForCausalLM&sliding_window=5",
        "gemma2": f"random:gemma2?{sizes}&num_key_value_heads=2&head_dim=8&architecture=Gemma2ForCausalLM&sliding_window=5",
        "phi3": f"random:phi3?{sizes}&num_key_value_heads=2&architecture=Phi3ForCausalLM",
        "mixtral": f"random:mixtral?{sizes}&num_key_value_heads=2&architecture=MixtralForCausalLM&num_local_experts=4",
        "falcon": f"random:falcon?num_hidden_layers={layers}&{falcon}",
        "gpt_neox": f"random:gpt_neox?{sizes}&architecture=GPTNeoXForCausalLM",
        "cohere": f"random:cohere?{sizes}&num_key_value_heads=2&architecture=CohereForCausalLM",
        "gpt2": f"random:gpt2?n_layer={layers}&n_embd=32&n_head=4&vocab_size=99&architecture=GPT2LMHeadModel",
    }


VIT = "random:vit?num_hidden_layers=1&hidden_size=32&intermediate_size=48&num_attention_heads=2&image_size=16&patch_size=4"


def listed(results: Any) -> list[np.ndarray]:
    return list(results) if isinstance(results, (tuple, list)) else [results]


def text_agrees(spec: str, run: Callable[[Feed], Sequence[np.ndarray]], bound: float, sizes: tuple[tuple[int, int], ...] = ((1, 1), (3, 11))) -> None:
    """Batches and lengths of any size, padding among them, against the reference semantics."""
    module, random = tfir.api.to_module(spec), np.random.default_rng(0)
    for batch, length in sizes:
        ids = random.integers(0, 99, (batch, length))
        mask = np.ones_like(ids)
        mask[-1, length // 2 :] = 0 if batch > 1 else 1
        named = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
        feed = {k: named[k] for k in argument_names(module.main)}
        near(run(feed), listed(tfir.evaluate(module, **feed)), bound)


def vision_agrees(run: Callable[[Feed], Sequence[np.ndarray]], bound: float) -> None:
    """The same of :data:`VIT`."""
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    near(run({"pixel_values": x}), listed(tfir.evaluate(tfir.api.to_module(VIT), x)), bound)


def near(got: Sequence[np.ndarray], want: Sequence[np.ndarray], bound: float) -> None:
    """No difference is larger than so much of the largest magnitude."""
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        assert np.abs(g - w).max() <= bound * np.abs(w).max()


def same_results(got: Sequence[np.ndarray], want: Sequence[np.ndarray], types: Sequence[TensorType], bounds: Mapping[Any, float]) -> None:
    """The results of an op: numbers within a bound by the largest magnitude of a result, anything else the same."""
    for g, w, t in zip(got, want, types, strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        if not (t.dtype.is_float or t.dtype.is_complex):
            np.testing.assert_array_equal(g, w)
            continue
        wide = np.complex128 if t.dtype.is_complex else np.float64
        a, b = g.astype(wide), w.astype(wide)
        with np.errstate(all="ignore"):
            scale = max([float(np.abs(b[np.isfinite(b)]).max(initial=0.0)), 1e-30])
            same = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= bounds[t.dtype] * scale)
            assert same.all(), f"{t.dtype}: {np.abs(a - b).max() / scale}"


def sampled(rules: Mapping[type[Op], Any]) -> list[str]:
    """The ops that have a rule and samples."""
    return sorted(kind.mnemonic for kind in rules if next(kind.samples(), None) is not None)


def samples(mnemonic: str, compare: Callable[[Case, Path], None], path: Path, known: Sequence[str], most: int | None = None) -> None:
    """The samples of an op, or the first that can be written, those with sizes that only the run knows before others. ``compare`` writes and executes
    a case, and raises what the writer says where it cannot; that must be one thing that is ``known``, or that a matrix is packed."""
    written = 0
    for case in sorted(cases([OPS[mnemonic]]), key=lambda c: not c.dims):
        if most is not None and written >= most:
            break
        try:
            with np.errstate(all="ignore"):
                compare(case, path)
        except CompilerError as error:
            problem = error.diagnostics[0]
            assert problem.code is Code.CANNOT_EXPORT, f"{case}: {problem.message}"
            packed = any(t is not None and isinstance(t.layout, Panels) for t in case.types)
            assert packed or any(why in problem.message for why in known), f"{case}: {problem.message}"
            continue
        written += 1
    assert written


def refusals(path: Path, f: Callable[..., Any], ops: Sequence[str], source: str) -> None:
    """All that cannot be written is said at once, with its line in ``source``; what was there before stays."""
    before = sorted(path.parent.rglob("*"))
    with_bytes = {p: p.read_bytes() for p in before if p.is_file()}
    try:
        tfir.export(f, str(path), example_inputs=[tfir.f32[3, 2]])
    except CompilerError as error:
        problems = error.diagnostics
    else:
        raise AssertionError("it was written")
    assert [p.where.op for p in problems] == list(ops)
    assert all(p.code is Code.CANNOT_EXPORT and Path(str(p.where.file)).name == Path(source).name and p.where.line for p in problems)
    assert sorted(path.parent.rglob("*")) == before and {p: p.read_bytes() for p in before if p.is_file()} == with_bytes
