"""Attention on Triton's interpreter: every kind of mask, ragged sizes, rows that see nothing, against the reference; one size of a real model
against torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from accuracy import differs
from random_graphs import wrap
from test_attention import FEATURES, KEYS, QUERIES, SPECIAL
from test_attention import arrays as special_arrays
from test_attention import module as special_module
from triton_harness import interpret_modules

import trustformers_ir as tfir
from trustformers_ir.codegen.lower.blocks import BlockMachine
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.conformance import random_array
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import PassManager

#: largest difference from the reference: weights of attention are rounded to the dtype of v, values lie in [-2, 2]
BOUND = {DType.f16: 4e-3, DType.bf16: 3e-2, DType.f32: 5e-6, DType.f64: 1e-13}


@dataclass(frozen=True)
class Form:
    """One attention: how many heads of queries and of keys, head size, what may be seen."""

    dtype: DType = DType.f16
    heads: tuple[int, int] = (2, 2)
    features: tuple[int, int] = (16, 16)
    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    mask: str = ""  # padding: of keys; full: of queries and keys
    bias: str = ""  # full, or alibi: a slope for each head times the distance
    lengths: tuple[int | str, int | str] = ("s", "t")
    edges: bool = False  # more sizes are tried

    def module(self) -> Module:
        def f(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
            extra = list(rest)
            mask = extra.pop(0) if self.mask else None
            bias = extra.pop(0) if self.bias else None
            about: dict[str, Any] = {"causal": self.causal, "window": self.window, "softcap": self.softcap, "scale": self.scale}
            return F.attention(q, k, v, mask, bias, **about)

        (hq, hk), (d, dv), (s, t) = self.heads, self.features, self.lengths
        specs = [self.dtype["b", hq, s, d], self.dtype["b", hk, t, d], self.dtype["b", hk, t, dv]]
        if self.mask:
            specs.append(DType.bool["b", 1, 1, t] if self.mask == "padding" else DType.bool["b", hq, s, t])
        if self.bias:
            specs.append(self.dtype[hq, s, t])
        module = tfir.trace(f, *specs)
        wrap([o for o in module.main.body if not o.op.terminator])
        return module

    def sizes(self) -> list[tuple[int, int, int]]:
        """Batch, queries and keys to try; what is constant is what it is."""
        s, t = self.lengths
        if isinstance(s, str) and self.dtype in (DType.f32, DType.f64):
            return [(3, 1, 70), (1, 37, 50), (1, 50, 37)]  # their blocks are small
        if isinstance(s, str):
            return [*SIZES, *(EDGES if self.edges else ())]
        return [(batch, s, t if isinstance(t, int) else keys) for batch, keys in ((3, 1), (3, 256), (1, 255), (1, 1025))]

    def inputs(self, batch: int, s: int, t: int) -> list[np.ndarray]:
        rng = np.random.default_rng(s * 1000 + t)
        (hq, hk), (d, dv) = self.heads, self.features
        shapes = [(batch, hq, s, d), (batch, hk, t, d), (batch, hk, t, dv)]
        out = [round_to(rng.uniform(-2, 2, shape), self.dtype) for shape in shapes]
        if self.mask == "padding":
            out.append(np.arange(t) < np.array([t, t // 3, 0])[:batch, None, None, None])  # the third sequence has no key
        elif self.mask:
            out.append(rng.random((batch, hq, s, t)) < 0.5)
        if self.bias:
            out.append(round_to(rng.uniform(-2, 2, (hq, s, t)), self.dtype))
        return out


FORMS = {
    "plain": Form(),
    "causal": Form(causal=True, edges=True),
    "window": Form(window=70),
    "narrow window": Form(window=3),
    "causal, window": Form(causal=True, window=70, edges=True),
    "causal, narrow window": Form(causal=True, window=1),
    "grouped": Form(heads=(6, 2), edges=True),
    "padding": Form(mask="padding"),
    "mask": Form(mask="full", causal=True),
    "bias": Form(bias="full", causal=True),
    "softcap": Form(softcap=1.5, bias="full"),
    "softcap, window": Form(softcap=30.0, window=100, causal=True),
    "scale": Form(scale=0.3, causal=True),
    "negative scale": Form(scale=-0.7),
    "scale of 0": Form(scale=0.0, causal=True),
    "odd heads": Form(features=(24, 40), causal=True),
    "bf16": Form(DType.bf16, causal=True),
    "one query": Form(heads=(6, 2), lengths=(1, "t"), causal=True),
    "one query, padding": Form(lengths=(1, "t"), mask="padding"),
    "one query, window": Form(lengths=(1, "t"), causal=True, window=300, bias="full"),
    "few queries": Form(heads=(6, 2), lengths=(5, "t"), causal=True, mask="full"),
    "few queries, f32": Form(DType.f32, heads=(2, 1), lengths=(5, "t"), causal=True),
    "one query, some keys": Form(heads=(6, 2), lengths=(1, 200)),
    "f32": Form(DType.f32, causal=True, window=40),
    "f64": Form(DType.f64, causal=True),
}
SIZES = ((3, 1, 200), (1, 131, 131), (1, 150, 40))
EDGES = ((1, 1, 1), (1, 5, 129), (1, 64, 192))


@pytest.mark.parametrize("kind", [pytest.param("ampere", marks=pytest.mark.long), "hopper"])
def test_every_form_agrees_with_the_reference(kind: str) -> None:
    """Ragged sizes, one query, more queries than keys, rows and whole sequences that see nothing, edges of windows inside and between blocks."""
    forms = FORMS if kind == "ampere" else {n: FORMS[n] for n in ("plain", "causal", "causal, window", "grouped", "padding")}
    runners = interpret_modules([f.module() for f in forms.values()], BlockMachine(kind=kind))
    for (name, form), run in zip(forms.items(), runners, strict=True):
        for batch, s, t in form.sizes():
            inputs, dims = form.inputs(batch, s, t), {"b": batch, "s": s, "t": t}
            want = evaluate(form.module(), *inputs, dims=dims)
            assert isinstance(want, np.ndarray)
            (got,) = run(inputs, dims)
            wrong = differs(got, want, BOUND[form.dtype])
            assert not wrong.any(), f"{name}, {dims}: first at {tuple(np.argwhere(wrong)[0])}, {wrong.sum()} of {wrong.size}"


def test_many_parts_are_joined() -> None:
    """More parts than one step of the second kernel takes, some of them behind the mask as a whole."""
    form = Form(heads=(2, 1), lengths=(1, "t"), mask="padding")
    (run,) = interpret_modules([form.module()])
    inputs, dims = form.inputs(2, 1, 8500), {"b": 2, "t": 8500}
    want = evaluate(form.module(), *inputs, dims=dims)
    assert isinstance(want, np.ndarray)
    assert not differs(run(inputs, dims)[0], want, BOUND[form.dtype]).any()


def test_parts_do_not_depend_on_what_else_is_there() -> None:
    """One sequence alone, and the same with more keys behind its mask, has the bits that it has in a batch."""
    form = Form(heads=(4, 2), lengths=(1, "t"), mask="padding")
    (run,) = interpret_modules([form.module()])
    q, k, v, mask = form.inputs(2, 1, 900)
    mask[:, ..., 600:] = False
    (both,) = run([q, k, v, mask], {"b": 2, "t": 900})
    (alone,) = run([q[1:], k[1:], v[1:], mask[1:]], {"b": 1, "t": 900})
    (short,) = run([q, k[:, :, :600], v[:, :, :600], mask[..., :600]], {"b": 2, "t": 600})
    assert np.array_equal(both[1:], alone) and np.array_equal(both, short)


@pytest.mark.parametrize("causal", [False, True])
def test_a_real_size_agrees_with_torch(causal: bool) -> None:
    """Heads of 64 features, three for one of keys, 300 tokens, in bf16."""
    torch = pytest.importorskip("torch", reason="pip install torch")
    form = Form(DType.bf16, heads=(3, 1), features=(64, 64), causal=causal)
    (run,) = interpret_modules([form.module()], BlockMachine(kind="hopper"))
    q, k, v = form.inputs(1, 300, 300)
    (got,) = run([q, k, v], {"b": 1, "s": 300, "t": 300})
    given = [torch.from_numpy(x.astype(np.float32)) for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*given, is_causal=causal, enable_gqa=True).numpy()
    assert not differs(got, want, BOUND[DType.bf16]).any()


@pytest.mark.parametrize("queries", ["s", 1])
def test_rotary_queries_and_alibi_are_computed_where_they_are_read(queries: int | str) -> None:
    """One kernel (two where keys are cut), nothing of the size of the scores in memory."""

    def f(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        length, others = q.shape[2], k.shape[2]
        distance = F.arange(others, dtype=DType.f16).reshape(1, others) - F.arange(length, dtype=DType.f16).reshape(length, 1)
        return F.attention(F.rope(q, cos, sin), k, v, None, slopes.reshape(4, 1, 1) * distance, causal=True)

    f16 = DType.f16
    specs = [f16["b", 4, queries, 16], f16["b", 2, "t", 16], f16["b", 2, "t", 16], f16[4], f16[queries, 8], f16[queries, 8]]
    source, module = tfir.trace(f, *specs), tfir.trace(f, *specs)
    PassManager(pipelines.gpu()).run(module)
    (run,) = interpret_modules([module])
    assert len(run.program.calls) == (2 if queries == 1 else 1)
    assert all({"rope", "mul", "attention"} <= set(c.label.split("+")) for c in run.program.calls)
    for s, t in ((1, 300), (70, 150), (131, 131)):
        dims = {"b": 2, "s": s, "t": t} if queries == "s" else {"b": 2, "t": t}
        given = [random_array(x, dims, np.random.default_rng(t)) for x in source.main.input_types]
        given[3] = np.array([0.5, 0.25, 0.125, 0.0625], np.float16)
        want = evaluate(source, *given, dims=dims)
        assert isinstance(want, np.ndarray)
        assert not differs(run(given, dims)[0], want, BOUND[f16]).any()


@pytest.mark.parametrize("dtype", [DType.f16, DType.f32], ids=str)
def test_special_values(dtype: DType) -> None:
    """NaN, infinities and rows that see nothing: as on the CPU."""
    (run,) = interpret_modules([special_module(dtype, str(FEATURES))])
    for name, change in SPECIAL.items():
        given = special_arrays(dtype)
        change(given)
        inputs, dims = list(given.values()), {"s": QUERIES, "t": KEYS}
        want = evaluate(special_module(dtype, str(FEATURES)), *inputs, dims={**dims, "d": FEATURES})
        assert isinstance(want, np.ndarray)
        assert not differs(run(inputs, dims)[0], want, BOUND[dtype]).any(), name
