"""The reference semantics against torch, in float64: all samples, and the edge values of elementwise ops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trustformers_ir.ir import ops
from trustformers_ir.ir.conformance import Case, cases, edge_values
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate_operation
from trustformers_ir.ir.ops.contract import unpacked
from trustformers_ir.ir.ops.unary import PredicateOp, UnaryOp
from trustformers_ir.ir.schema import OPS, Op, widen
from trustformers_ir.ir.types import TensorType

T = torch.Tensor
TORCH: dict[DType, torch.dtype] = {
    DType.bool: torch.bool, DType.i8: torch.int8, DType.i16: torch.int16, DType.i32: torch.int32, DType.i64: torch.int64,
    DType.u8: torch.uint8, DType.f16: torch.float64, DType.bf16: torch.float64, DType.f32: torch.float64, DType.f64: torch.float64,
    DType.c64: torch.complex128, DType.c128: torch.complex128,
}  # fmt: skip


def pad(x: T, low: tuple[int, ...], high: tuple[int, ...], mode: str, value: float) -> T:
    """torch's pad, one axis after another (its reflect and replicate modes know only some ranks)."""
    for axis, (lo, hi) in enumerate(zip(low, high, strict=True)):
        if lo or hi:
            rows = x.movedim(axis, -1).reshape(1, -1, x.shape[axis])
            rows = F.pad(rows, (lo, hi), value=value) if mode == "constant" else F.pad(rows, (lo, hi), mode)
            shape = [d for i, d in enumerate(x.shape) if i != axis]
            x = rows.reshape(*shape, -1).movedim(-1, axis)
    return x


def conv(o: Any, case: Case, x: T, w: T, b: T | None = None) -> T:
    (low, high) = zip(*((lo, hi) for _, lo, hi, _ in o.geometry()), strict=True)
    x = F.pad(x, [p for pair in reversed(list(zip(low, high, strict=True))) for p in pair])
    stride, dilation = [g[0] for g in o.geometry()], [g[3] for g in o.geometry()]
    run = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]
    return run(x.double(), w.double(), None if b is None else b.double(), stride, 0, dilation, o.groups).to(x.dtype)


def packed_attention(o: ops.PackedAttention, case: Case, q: T, k: T, v: T, q_starts: T, k_starts: T) -> T:
    """One query and head at a time, over the keys of its sequence."""
    out = torch.zeros(*q.shape[:2], v.shape[2], dtype=q.dtype)
    scale = 1 / math.sqrt(q.shape[2]) if o.scale is None else o.scale
    pairs = list(zip(q_starts.tolist(), k_starts.tolist(), strict=True))
    for i, h in itertools.product(*map(range, q.shape[:2])):
        begun, to_come = [p for p in pairs if p[0] <= i], [p for p in pairs if p[0] > i]
        if not begun or not to_come:
            continue
        end = min(key for _, key in to_come)
        at = i + end - min(query for query, _ in to_come)
        first = max(0, *(key for _, key in begun), *([] if o.window is None else [at - o.window + 1]))
        keys = slice(first, max(first, min(k.shape[0], end, at + 1 if o.causal else end)))
        g = h // (q.shape[1] // k.shape[1])
        s = scale * (k[keys, g] @ q[i, h])
        s = s if o.softcap is None else o.softcap * torch.tanh(s / o.softcap)
        out[i, h] = torch.softmax(s, 0) @ v[keys, g] if len(s) else 0
    return out


def cache_write(o: ops.CacheWrite, case: Case, cache: T, rows: T, start: T) -> T:
    """One head of one token at a time."""
    out = cache.clone()
    for b, h, i in itertools.product(*map(range, rows.shape[:3])):
        out[b, h, int(start[b]) + i] = rows[b, h, i]
    return out


def paged_write(o: ops.PagedWrite, case: Case, pool: T, rows: T, start: T, pages: T) -> T:
    """One head of one token at a time."""
    out, length = pool.clone(), pool.shape[2]
    for b, h, i in itertools.product(*map(range, rows.shape[:3])):
        page, place = divmod(int(start[b]) + i, length)
        out[int(pages[b, page]), h, place] = rows[b, h, i]
    return out


def paged_read(o: ops.PagedRead, case: Case, pool: T, pages: T) -> T:
    """Page by page."""
    rows = [torch.cat([pool[int(p)] for p in row], dim=1) if len(row) else pool[0, :, :0] for row in pages]
    return torch.stack(rows)


def attention(o: ops.Attention, case: Case, q: T, k: T, v: T, mask: T | None, bias: T | None, start: T | None = None) -> T:
    """Row by row, as the definition reads."""
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)
    queries, keys = q.shape[2], k.shape[2]
    scale = 1 / math.sqrt(q.shape[3]) if o.scale is None else o.scale
    full = (*q.shape[:3], keys)
    mask = None if mask is None else mask.expand(full)
    bias = None if bias is None else bias.expand(full)
    for b, h, i in itertools.product(*map(range, q.shape[:3])):
        g = h // (q.shape[1] // k.shape[1])
        scores, seen = [], []
        for j in range(keys):
            at = i + (keys - queries if start is None else int(start[b]))
            if (o.causal and j > at) or (o.window is not None and j <= at - o.window) or (mask is not None and not mask[b, h, i, j]):
                continue
            s = scale * torch.dot(q[b, h, i], k[b, g, j])
            s = s if o.softcap is None else o.softcap * torch.tanh(s / o.softcap)
            scores.append(s if bias is None else s + bias[b, h, i, j])
            seen.append(j)
        if seen:
            out[b, h, i] = torch.softmax(torch.stack(scores), 0) @ v[b, g, seen]
    return out


def gather_nd(o: ops.GatherNd, case: Case, x: T, indices: T) -> T:
    b = o.batch_dims
    rows = [x[(*at[:b], *indices[at].tolist())] for at in itertools.product(*map(range, indices.shape[:-1]))]
    return torch.stack(rows).reshape(*indices.shape[:-1], *rows[0].shape)


def combine(kind: ops.ScatterReduce, old: T, new: T) -> T:
    if kind is ops.ScatterReduce.NONE:
        return new
    return {"add": torch.add, "mul": torch.mul, "max": torch.maximum, "min": torch.minimum}[kind.value](old, new)


def scatter_elements(o: ops.ScatterElements, case: Case, x: T, indices: T, updates: T) -> T:
    y = x.clone()
    for at in itertools.product(*map(range, indices.shape)):
        to = list(at)
        to[o.axis] = int(indices[at])
        y[tuple(to)] = combine(o.reduce, y[tuple(to)], updates[at])
    return y


def scatter_nd(o: ops.ScatterNd, case: Case, x: T, indices: T, updates: T) -> T:
    y = x.clone()
    for at in itertools.product(*map(range, indices.shape[:-1])):
        to = tuple(indices[at].tolist())
        y[to] = combine(o.reduce, y[to], updates[at])
    return y


def rope(o: ops.Rope, case: Case, x: T, cos: T, sin: T) -> T:
    """As multiplication by complex numbers."""
    half = cos.shape[-1]
    turn = torch.complex(cos, sin)
    head, tail = x[..., : 2 * half], x[..., 2 * half :]
    if o.interleaved:
        pairs = torch.view_as_complex(head.reshape(*head.shape[:-1], half, 2).contiguous())
        turned = torch.view_as_real(pairs * turn).flatten(-2)
    else:
        pairs = torch.complex(head[..., :half], head[..., half:]) * turn
        turned = torch.cat([pairs.real, pairs.imag], -1)
    return torch.cat([turned, tail], -1)


def norm_shape(x: T, *parameters: T | None) -> tuple[int, ...]:
    return next((tuple(p.shape) for p in parameters if p is not None), (x.shape[-1],))


def rms_norm(o: ops.RmsNorm, case: Case, x: T, w: T | None) -> T:
    return F.rms_norm(x, norm_shape(x, w), None if w is None else w + o.offset, o.eps)


def scan(run: Callable[..., T], identity: int) -> Callable[..., T]:
    def twin(o: ops.CumSum, case: Case, x: T) -> T:
        x = x.flip(o.axis) if o.reverse else x
        y = run(x, o.axis, dtype=x.dtype)
        if o.exclusive and y.shape[o.axis]:
            first = torch.full_like(y.narrow(o.axis, 0, 1), identity)
            y = torch.cat([first, y.narrow(o.axis, 0, y.shape[o.axis] - 1)], o.axis)
        return y.flip(o.axis) if o.reverse else y

    return twin


def top_k(o: ops.TopK, case: Case, x: T) -> tuple[T, T]:
    """A stable sort: torch.topk leaves the order of equals open."""
    values, order = torch.sort(x, dim=o.axis, descending=o.largest, stable=True)
    k = size(case, o.k)
    return values.narrow(o.axis, 0, k), order.narrow(o.axis, 0, k)


def unfold(o: ops.Unfold, case: Case, x: T) -> T:
    lead = x.ndim - len(o.windows)
    widths = [n for w in reversed(o.windows) for n in (w.before, w.after)]
    x = F.pad(x, widths, value=o.value)
    for axis, w in enumerate(o.windows, lead):
        x = x.unfold(axis, w.span, w.stride)[..., :: w.dilation]
    return x


def reduced(run: Callable[..., T]) -> Callable[..., T]:
    """A torch reduction over one axis, applied to several axes."""

    def twin(o: ops.ReduceSum, case: Case, x: T) -> T:
        for axis in reversed(o.axes):
            x = run(x, axis, o.keepdims)
        return x

    return twin


def variance(run: Callable[..., T]) -> Callable[..., T]:
    def twin(o: ops.ReduceVar, case: Case, x: T) -> T:
        if not o.axes:  # torch would reduce all axes
            return torch.full_like(x, 0.0 if o.correction == 0 else math.nan)
        return run(x, o.axes, correction=o.correction, keepdim=o.keepdims)

    return twin


def wraps(x: T, k: int) -> T:
    return torch.where(x < 0, x + k, x).long()


def remainder(a: T, b: T) -> T:
    """Python's ``%``: torch's overflows in between when the quotient is beyond float64."""
    if not a.is_floating_point():
        return torch.remainder(a, b)
    safe = np.vectorize(lambda x, y: math.nan if y == 0 or math.isinf(x) else x % y, otypes=[np.float64])
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(safe(a.numpy(), b.numpy()))


def divide(run: Callable[..., T]) -> Callable[..., T]:
    """Integer division by zero raises in torch; here it is 0."""

    def twin(o: Op, case: Case, a: T, b: T) -> T:
        if a.is_floating_point():
            return run(a, b)
        return torch.where(b == 0, 0, run(a, torch.where(b == 0, 1, b))).to(a.dtype)

    return twin


def plain(run: Callable[..., Any]) -> Callable[..., Any]:
    return lambda o, case, *xs: run(*xs)


TWINS: dict[type[Op], Callable[..., Any]] = {
    **{
        kind: plain(getattr(torch, kind.mnemonic))
        for kind in (
            ops.Neg, ops.Abs, ops.Floor, ops.Ceil, ops.Round, ops.Trunc, ops.Sqrt, ops.Rsqrt, ops.Reciprocal, ops.Exp, ops.Exp2, ops.Expm1,
            ops.Log, ops.Log1p, ops.Log2, ops.Log10, ops.Sin, ops.Cos, ops.Tan, ops.Asin, ops.Acos, ops.Atan, ops.Sinh, ops.Cosh, ops.Tanh,
            ops.Asinh, ops.Acosh, ops.Atanh, ops.Erf, ops.Sigmoid, ops.Relu, ops.LogicalNot, ops.BitwiseNot, ops.Real, ops.Imag, ops.Conj,
            ops.Add, ops.Sub, ops.Mul, ops.Div, ops.Pow, ops.Minimum, ops.Maximum, ops.Atan2, ops.Eq, ops.Ne, ops.Lt, ops.Le, ops.Gt,
            ops.Ge, ops.MatMul,
        )
    },
    ops.Sign: plain(lambda x: torch.where(torch.isnan(x), x, torch.sign(x))),
    ops.IsNan: plain(torch.isnan),
    ops.IsInf: plain(torch.isinf),
    ops.IsFinite: plain(torch.isfinite),
    ops.Silu: plain(F.silu),
    ops.Mish: plain(F.mish),
    ops.HardSwish: plain(F.hardswish),
    ops.HardSigmoid: plain(F.hardsigmoid),
    ops.Softplus: plain(lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    ops.Gelu: lambda o, case, x: F.gelu(x, approximate=o.approximate.value),
    ops.Elu: lambda o, case, x: F.elu(x, o.alpha),
    ops.LeakyRelu: lambda o, case, x: F.leaky_relu(x, o.slope),
    ops.FloorDiv: divide(torch.floor_divide),
    ops.Mod: divide(remainder),
    ops.And: plain(torch.bitwise_and),
    ops.Or: plain(torch.bitwise_or),
    ops.Xor: plain(torch.bitwise_xor),
    ops.ShiftLeft: plain(torch.bitwise_left_shift),
    ops.ShiftRight: plain(torch.bitwise_right_shift),
    ops.Select: plain(torch.where),
    ops.Clamp: lambda o, case, x: torch.clamp(x, o.low, o.high) if x.is_floating_point() else torch.clamp(
        x.long(), None if o.low is None else int(o.low), None if o.high is None else int(o.high)).to(x.dtype),
    ops.Cast: lambda o, case, x: (
        x.clamp(o.dtype.min, o.dtype.max) if x.is_floating_point() and o.dtype.is_integer else x  # torch leaves what does not fit open
    ).to(TORCH[o.dtype]),
    ops.MakeComplex: plain(lambda re, im: torch.complex(*torch.broadcast_tensors(re, im))),
    ops.Reshape: lambda o, case, x: x.reshape(case.results[0].concrete(case.dims)),
    ops.Transpose: lambda o, case, x: x.permute(o.perm),
    ops.Expand: lambda o, case, x: x.expand(case.results[0].concrete(case.dims)),
    ops.Concat: lambda o, case, *xs: torch.cat(xs, o.axis),
    ops.Slice: lambda o, case, x: x.movedim(o.axis, 0)[size(case, o.start) : size(case, o.stop) : o.step].movedim(0, o.axis),
    ops.Flip: lambda o, case, x: x.flip(o.axis),
    ops.Pad: lambda o, case, x: pad(
        x, sizes(case, o.low), sizes(case, o.high), "replicate" if o.mode is ops.PadMode.EDGE else o.mode.value, o.value
    ),
    ops.ReduceSum: reduced(lambda x, axis, keep: x.sum(axis, keep, dtype=x.dtype)),
    ops.ReduceMean: reduced(lambda x, axis, keep: x.mean(axis, keep)),
    ops.ReduceProd: reduced(lambda x, axis, keep: x.prod(axis, keep, dtype=x.dtype)),
    ops.ReduceMax: reduced(lambda x, axis, keep: x.amax(axis, keep)),
    ops.ReduceMin: reduced(lambda x, axis, keep: x.amin(axis, keep)),
    ops.ReduceAny: reduced(lambda x, axis, keep: x.any(axis, keep)),
    ops.ReduceAll: reduced(lambda x, axis, keep: x.all(axis, keep)),
    ops.ReduceLogSumExp: reduced(lambda x, axis, keep: x.logsumexp(axis, keep)),
    ops.ReduceVar: variance(torch.var),
    ops.ReduceStd: variance(torch.std),
    ops.ArgMax: lambda o, case, x: torch.argmax(x, o.axis, o.keepdims),
    ops.ArgMin: lambda o, case, x: torch.argmin(x, o.axis, o.keepdims),
    ops.TopK: top_k,
    ops.CumSum: scan(torch.cumsum, 0),
    ops.CumProd: scan(torch.cumprod, 1),
    ops.Softmax: lambda o, case, x: torch.softmax(x, o.axis),
    ops.LogSoftmax: lambda o, case, x: torch.log_softmax(x, o.axis),
    ops.Gather: lambda o, case, x, i: torch.from_numpy(np.take(x.numpy(), i.numpy().astype(np.int64), o.axis)),
    ops.GatherElements: lambda o, case, x, i: torch.gather(x, o.axis, wraps(i.long(), x.shape[o.axis])),
    ops.GatherNd: gather_nd,
    ops.ScatterElements: scatter_elements,
    ops.ScatterNd: scatter_nd,
    ops.Embedding: lambda o, case, w, i: F.embedding(wraps(i.long(), w.shape[0]), w),
    ops.OneHot: lambda o, case, i: torch.stack([i == j for j in range(o.depth)], -1).to(TORCH[o.dtype]),
    ops.Linear: lambda o, case, x, w, b: F.linear(
        x, torch.from_numpy(unpacked(w.numpy(), case.types[1].layout, (case.results[0].shape[-1], x.shape[-1]))), b
    ),
    ops.Einsum: lambda o, case, *xs: torch.einsum(o.equation, *xs),
    ops.Conv1d: conv,
    ops.Conv2d: conv,
    ops.Conv: conv,
    ops.Unfold: unfold,
    ops.LayerNorm: lambda o, case, x, w, b: F.layer_norm(x, norm_shape(x, w, b), w, b, o.eps),
    ops.RmsNorm: rms_norm,
    ops.Rope: rope,
    ops.Attention: attention,
    ops.CachedAttention: attention,
    ops.CacheWrite: cache_write,
    ops.PagedWrite: paged_write,
    ops.PagedRead: paged_read,
    ops.DequantizeGroups: lambda o, case, q, scale: q * scale.repeat_interleave(o.group, -1),
    ops.ExpertMatMul: lambda o, case, x, w, e: (x[..., None, :] @ w[wraps(e, w.shape[0])])[..., 0, :],
    ops.PackedAttention: packed_attention,
    ops.Dropout: lambda o, case, x: F.dropout(x, o.p, training=False),
}  # fmt: skip
WITHOUT_TWIN = {"constant", "weight", "iota", "dim", "return", "yield", "fused", "pack"}  # nothing to compare, or tested by their inverse
WITHOUT_TWIN |= {"bitcast"}  # torch sees wide floats here: test_windows.py
WITHOUT_TWIN |= {"nonzero", "suppress", "check"}  # test_computed_dims.py, test_onnx.py
WITHOUT_TWIN |= {"quantize_dynamic", "quantize_static", "linear_int8"}  # torch rounds elsewhere: test_ops_quantized.py
WITHOUT_TWIN |= {"quantize_f8", "linear_f8"}  # numpy has no such arrays: test_ops_quantized_f8.py
WITHOUT_TWIN |= {"linear_blocks", "embedding_blocks"}  # torch has no such weights: test_block_formats.py
WITHOUT_TWIN |= {"quantize_groups", "linear_blocks_int8"}  # nor such arithmetic: test_blocks_int8.py, test_quantize_activations.py
WITHOUT_TWIN |= {"expert_blocks", "expert_blocks_int8"}  # test_expert_blocks.py
WITHOUT_TWIN |= {"nonzero"}  # how large it is, data says: test_computed_dims.py


def size(case: Case, dim: Any) -> int:
    return sizes(case, (dim,))[0]


def sizes(case: Case, dims: tuple[Any, ...]) -> tuple[int, ...]:
    return TensorType(dims, DType.bool).concrete(case.dims)


def test_every_op_has_a_twin() -> None:
    assert {kind.mnemonic for kind in TWINS} == set(OPS) - WITHOUT_TWIN


def compare(case: Case, got: np.ndarray, wanted: T, exact: bool) -> None:
    got_wide = widen(got)
    wanted_array = wanted.resolve_conj().numpy()
    assert got_wide.shape == wanted_array.shape, str(case)
    if exact:
        np.testing.assert_array_equal(got_wide, wanted_array, err_msg=str(case))
    else:
        np.testing.assert_allclose(got_wide, wanted_array, rtol=1e-11, atol=1e-13, err_msg=str(case))


def run_both(case: Case) -> None:
    operands = [None if a is None else torch.from_numpy(np.array(widen(a), order="C")) for a in case.arrays]
    wanted = TWINS[type(case.op)](case.op, case, *operands)
    arrays = [None if a is None else widen(a) for a in case.arrays]
    got = evaluate_operation(case.op, arrays, case.results, case.dims, case.types, wide=True)
    for g, w, t in zip(got, wanted if isinstance(wanted, tuple) else (wanted,), case.results, strict=True):
        compare(case, g, w, exact=case.op.exact or not (t.dtype.is_float or t.dtype.is_complex))


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("mnemonic", sorted(kind.mnemonic for kind in TWINS))
def test_samples(mnemonic: str) -> None:
    for case in cases([OPS[mnemonic]]):
        if all(t is None or t.dtype in TORCH for t in (*case.types, *case.results)):
            run_both(case)


# --- edge values -------------------------------------------------------------------------------------------------------------------

UNARY = sorted((kind for kind in TWINS if issubclass(kind, UnaryOp)), key=lambda kind: kind.mnemonic)
BINARY = sorted((kind for kind in TWINS if issubclass(kind, ops.BinaryOp)), key=lambda kind: kind.mnemonic)


def edge_case(op: Op, *arrays: np.ndarray) -> Case:
    types = tuple(TensorType(a.shape, DType.from_numpy(a.dtype)) for a in arrays)
    module_case = next(iter(cases([type(op)])))
    return Case(op, types, module_case.facts, {}, arrays)


@pytest.mark.parametrize("kind", UNARY, ids=lambda kind: kind.mnemonic)
def test_edge_values_of_unary_ops(kind: type[Op]) -> None:
    for dtype in (DType.f32, DType.f64, DType.bf16, DType.f16, DType.i32, DType.i8, DType.u8, DType.i64, DType.bool):
        if dtype in kind.operands[0].dtypes:
            for op in {case.op for case in cases([kind])}:
                run_both(edge_case(op, edge_values(dtype)))


@pytest.mark.parametrize("kind", BINARY, ids=lambda kind: kind.mnemonic)
def test_edge_values_of_binary_ops(kind: type[Op]) -> None:
    for dtype in (DType.f32, DType.f64, DType.i32, DType.i8, DType.u8, DType.i64, DType.bool):
        if dtype in kind.operands[0].dtypes:
            a, b = edge_values(dtype)[:, None], edge_values(dtype)[None, :]
            if dtype.is_integer and kind in (ops.FloorDiv, ops.Mod, ops.ShiftLeft, ops.ShiftRight, ops.Pow):
                continue  # torch raises or is undefined there: see test_ops_elementwise.py
            run_both(edge_case(kind(), a, b))


def test_predicates_have_boolean_results() -> None:
    assert all(case.results[0].dtype is DType.bool for kind in OPS.values() if issubclass(kind, PredicateOp) for case in cases([kind]))
