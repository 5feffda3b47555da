"""One function, run by torch and traced: the method names and meanings of torch, with static and with symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as TF

from trustformers_ir.frontend.trace import trace
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate

Fn = Callable[..., Any]
X = (3, 4, 5)


def run(fn: Fn, arrays: list[np.ndarray], symbolic: bool) -> tuple[Module, tuple[np.ndarray, ...]]:
    """The traced function on the arrays. With ``symbolic`` every different first size becomes a symbol."""
    types = []
    for a in arrays:
        shape = tuple(f"n{d}" if symbolic and i == 0 and d > 1 else d for i, d in enumerate(a.shape))
        types.append(DType.from_numpy(a.dtype)[shape])
    module = trace(fn, *types)
    results = evaluate(module, *arrays)
    return module, results if isinstance(results, tuple) else (results,)


def flat(results: Any) -> list[Any]:
    if isinstance(results, (tuple, list)):
        return [leaf for r in results for leaf in flat(r)]
    return [results]


def check(fn: Fn, arrays: list[np.ndarray], symbolic: bool, theirs: Fn | None = None) -> Module:
    expected = [np.asarray(t) for t in flat((theirs or fn)(*(torch.tensor(a) for a in arrays)))]
    module, results = run(fn, arrays, symbolic)
    assert len(results) == len(expected)
    for have, want in zip(results, expected, strict=True):
        assert have.dtype == want.dtype and have.shape == want.shape, (have.dtype, have.shape, want.dtype, want.shape)
        tolerance = 1e-5 if want.dtype == np.float32 else 1e-12
        np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance)
    return module


def draw(*shapes: tuple[int, ...], seed: int = 0, low: float | None = None) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal(s) if low is None else random.uniform(low, low + 2, s) for s in shapes]


EVERYWHERE = [
    *("neg", "abs", "sign", "floor", "ceil", "round", "trunc", "exp", "exp2", "expm1", "sin", "cos", "tan", "sinh", "cosh", "tanh"),
    *("asinh", "atan", "erf", "sigmoid", "relu", "square", "isnan", "isinf", "isfinite"),
]
ABOVE_ONE = ["log", "log1p", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "acosh"]


@pytest.mark.parametrize("name", EVERYWHERE + ABOVE_ONE)
def test_elementwise(name: str) -> None:
    check(lambda x: getattr(x, name)(), draw(X, low=1.25 if name in ABOVE_ONE else None), True)


@pytest.mark.parametrize("name", ["exp", "sqrt", "tanh", "sin", "mean", "std"])
def test_functions_of_real_numbers_turn_integers_into_f32(name: str) -> None:
    x = np.arange(1, 13).reshape(3, 4)
    module = trace(lambda x: getattr(x, name)(), DType.i64[3, 4])
    np.testing.assert_allclose(evaluate(module, x), np.asarray(getattr(torch.tensor(x).float(), name)()), rtol=1e-6)


OPERATORS: list[Fn] = [
    lambda x, y: x + y,
    lambda x, y: x - 2 * y,
    lambda x, y: 3 - x,
    lambda x, y: x * y[:, :1],
    lambda x, y: x / (y * y + 1),
    lambda x, y: 1 / (x * x + 0.5),
    lambda x, y: x // (y * y + 0.5),
    lambda x, y: x % (y * y + 0.5),
    lambda x, y: 2.5 // (x * x + 0.5),
    lambda x, y: 2.5 % (x * x + 0.5),
    lambda x, y: x**2 + y**3,
    lambda x, y: (x * x + 1) ** 0.5 + (y * y + 1) ** -0.5,
    lambda x, y: (x * x + 1) ** y,
    lambda x, y: (x + 10) ** -1,
    lambda x, y: 2**x,
    lambda x, y: -x + abs(+y),
    lambda x, y: (x < y, x <= y, x > y, x >= y, x == y, x != y),
    lambda x, y: (x < 0.5, x > 0.5, x == 0),
    lambda x, y: (x < y) & (x > 0) | ~(y > 0) ^ (x > 1),
    lambda x, y: x.maximum(y) + x.minimum(y),
    lambda x, y: x.max(y) - x.min(y),
    lambda x, y: x.atan2(y),
    lambda x, y: x.add(y).sub(1).mul(2).div(3),
    lambda x, y: x.clamp(-0.5, 0.5) + y.clamp(min=0) + x.clamp(max=y),
    lambda x, y: x.where(x > 0, y),
    lambda x, y: x.masked_fill(y > 0, -1.5),
    lambda x, y: x.pow(2).pow(1.5),
    lambda x, y: (x > 0).logical_and(y > 0).logical_or(x < -1).logical_xor(y < 1).logical_not(),
    lambda x, y: x.lt(y).long() + x.ge(y).int() + x.eq(x).bool(),
    lambda x, y: x.type_as(y).double().contiguous().clone().detach(),
]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("fn", OPERATORS)
def test_operators(fn: Fn, symbolic: bool) -> None:
    check(fn, draw((4, 5), (4, 5)), symbolic)


INTEGERS: list[Fn] = [
    lambda x, y: x + y * 3 - 1,
    lambda x, y: x / (y + 9),
    lambda x, y: x // (y * y + 1),
    lambda x, y: x % 3,
    lambda x, y: -7 % (x * x + 2),
    lambda x, y: x & y | 1 ^ y,
    lambda x, y: (x * x) << 2 >> 1,
    lambda x, y: ~x,
    lambda x, y: x * 0.5 + y,
    lambda x, y: x == 1.5,
    lambda x, y: (x > y) * x + (x > y),
    lambda x, y: x + (y > 0),
    lambda x, y: 1.0 - (x > 0).float(),
    lambda x, y: (x > 0) + 1,
    lambda x, y: x.clamp(-1, 1) + y.clamp(0.5, 2.5),
    lambda x, y: x.sum(0) + y.prod(0),
    lambda x, y: (x > 0).sum(),
    lambda x, y: x.int().sum(1),
    lambda x, y: (x.cumsum(0), (y > 0).cumsum(1)),
    lambda x, y: (x.max(), x.amin(0), y.argmax(1), y.argmin()),
    lambda x, y: x.to(torch.int8 if isinstance(x, torch.Tensor) else DType.i8) + y.int(),
]


@pytest.mark.parametrize("fn", INTEGERS)
def test_integers(fn: Fn) -> None:
    random = np.random.default_rng(3)
    check(fn, [random.integers(-5, 6, (4, 5)), random.integers(-5, 6, (4, 5))], True)


MOVEMENT: list[Fn] = [
    lambda x: x.reshape(x.shape[0], 20),
    lambda x: x.reshape(-1, 5),
    lambda x: x.view((x.shape[0], 2, -1, 5)),
    lambda x: x.flatten(),
    lambda x: x.flatten(1),
    lambda x: x.flatten(0, 1).unflatten(0, (x.shape[0], 4)),
    lambda x: x.unflatten(1, (2, -1)),
    lambda x: x.transpose(0, 2),
    lambda x: x.transpose(-1, -2) + x.mT,
    lambda x: x.swapaxes(0, 1),
    lambda x: x.permute(2, 0, 1),
    lambda x: x.movedim(0, -1),
    lambda x: x[0].T,
    lambda x: x.unsqueeze(1).expand(-1, 2, 4, 5),
    lambda x: x[:, :1].expand_as(x) * x,
    lambda x: x[:, :, :1].broadcast_to(x.shape),
    lambda x: x.unsqueeze(-1).unsqueeze(0).squeeze(),
    lambda x: x[:, :1].squeeze(1).unsqueeze(2).squeeze(-1),
    lambda x: x.split(2, dim=1),
    lambda x: x.split([1, 3], 1),
    lambda x: x.split(3, -1),
    lambda x: x.chunk(3, 2),
    lambda x: x.chunk(2, dim=1)[1],
    lambda x: x.narrow(1, 1, 2),
    lambda x: x.select(1, -1),
    lambda x: x.unbind(1),
    lambda x: x.repeat(2, 1, 3),
    lambda x: x.repeat(2, 1, 1, 1),
    lambda x: x.tile((2,)),
    lambda x: x.repeat_interleave(3, dim=1),
    lambda x: x.roll(1, 1).roll(-2, 2),
    lambda x: x.roll((1, 2), (1, 2)),
    lambda x: x.flip(1).flip((0, 2)),
    lambda x: x.tril() + x.triu(1),
    lambda x: x.tril(-1) * x.triu(-2),
    lambda x: (x + x.size(1)) * x.numel() / x.ndim + x.dim() + x.size(-1),
]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("fn", MOVEMENT)
def test_movement(fn: Fn, symbolic: bool) -> None:
    check(fn, draw(X), symbolic)


SUBSCRIPTS: list[Fn] = [
    lambda x: x[0],
    lambda x: x[-1],
    lambda x: x[:, 1],
    lambda x: x[..., 2],
    lambda x: x[:, -1, 1:],
    lambda x: x[:, 1:3],
    lambda x: x[:, :2, ::2],
    lambda x: x[:, 1::3],
    lambda x: x[:, -3:-1],
    lambda x: x[:, 2:100],
    lambda x: x[:, -100:2],
    lambda x: x[:, 3:1],
    lambda x: x[None],
    lambda x: x[:, None, ..., None],
    lambda x: x[0, None, :, None, 1],
    lambda x: x[...],
    lambda x: x[1:],
    lambda x: x[:1],
    lambda x: x[: x.shape[0] - 1],
    lambda x: x[x.shape[0] - 1 :],
    lambda x: x[:2],
    lambda x: x[-2:],
    lambda x: x[5:],
    lambda x: x[1:3:2],
    lambda x: x[:, [0, 2, 2]],
    lambda x: x[[2, 0]],
    lambda x: x[1:, [0, 2], 1:],
    lambda x: x[:, :, [[0, 1], [3, 4]]],
    lambda x: x[0, [1, 2]],
    lambda x: x[:, 1, [1, 2]],
    lambda x: x[[0, 1], [2, 3]],
    lambda x: x[:, [0, 1], [2, 3]],
    lambda x: x[[0, 1], :, [2, 3]],
    lambda x: x[1:, None, [0, 1], [2, 3]],
    lambda x: x[[0, 1], [2, 3], None, :2],
    lambda x: x[[[0], [1]], [[2, 3]]],
    lambda x: x[None, [0, 1], 1, [2, 3]],
    lambda x: x[[0, 1], None, [2, 3]],
]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("fn", SUBSCRIPTS)
def test_subscripts(fn: Fn, symbolic: bool) -> None:
    def traced(x: Any) -> Any:
        return fn(x)

    arrays = draw((3, 4, 5))
    types = [DType.f64["n", 4, 5]] if symbolic else [DType.f64[3, 4, 5]]
    want = np.asarray(fn(torch.tensor(arrays[0])))
    have = evaluate(trace(traced, *types, facts={"n": (3, 9)} if symbolic else None), *arrays)
    np.testing.assert_array_equal(have, want)


REDUCTIONS: list[Fn] = [
    lambda x: (x.sum(), x.mean(), x.prod(), x.std(), x.var(), x.max(), x.min(), x.amax(), x.amin()),
    lambda x: (x.sum(1), x.mean(-1), x.prod(2), x.std(1), x.var(2)),
    lambda x: (x.sum((1, 2)), x.mean((0, 2), keepdim=True), x.amax((1, 2))),
    lambda x: (x.max(1), x.min(-1, keepdim=True)),
    lambda x: (x.argmax(), x.argmin(1), x.argmax(2, keepdim=True)),
    lambda x: (x.std(1, correction=0), x.var(2, correction=2)),
    lambda x: ((x > 0).any(), (x > -9).all(1), (x > 0).any(dim=2)),
    lambda x: (x.logsumexp(1), x.logsumexp((1, 2), keepdim=True)),
    lambda x: (x.cumsum(1), x.cumprod(dim=2)),
    lambda x: (x.softmax(-1), x.softmax(dim=1), x.log_softmax(2)),
    lambda x: (x.norm(), x.norm(2, 1), x.norm(p=1, dim=2, keepdim=True)),
    lambda x: (x.topk(2), x.topk(3, 1, largest=False)),
    lambda x: (x.sort(-1), x.sort(1, descending=True), x.argsort(2)),
    lambda x: x.sum(-1, keepdim=True).expand(-1, -1, 5),
]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("fn", REDUCTIONS)
def test_reductions(fn: Fn, symbolic: bool) -> None:
    check(fn, draw(X), symbolic)


def test_indices() -> None:
    random = np.random.default_rng(5)
    x, updates = draw((4, 6), (4, 6))
    one, many = random.integers(0, 4, 7), random.integers(0, 6, (4, 6))
    check(lambda x, i: x.index_select(0, i), [x, one], True)
    check(lambda x, i: x.gather(1, i), [x, many], True)
    check(lambda x, i: x.take_along_dim(i, 1), [x, many], True)
    unique = np.argsort(random.standard_normal((4, 6)), axis=1)
    check(lambda x, i, u: x.scatter(1, i, u), [x, unique, updates], True)
    check(lambda x, i: x.scatter(1, i, 2.5), [x, many], True)
    check(lambda x, i, u: x.scatter_add(1, i, u), [x, many, updates], True)
    for reduce in ("sum", "prod", "amax", "amin"):
        check(lambda x, i, u, r=reduce: x.scatter_reduce(1, i, u, r), [x, many, updates], True)
    check(lambda x, i: x[i], [x, one], False)
    check(lambda x, i, j: x[i, j], [x, one, one], False)
    check(lambda x, i: x.take(i), [x, many], False, lambda x, i: x.flatten()[i])


@pytest.mark.parametrize(
    "shapes", [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((4,), (4,)), ((4,), (4, 3)), ((2, 3, 4), (4,)), ((2, 1, 3, 4), (5, 4, 2))]
)
def test_matrix_products(shapes: tuple[tuple[int, ...], ...]) -> None:
    check(lambda a, b: a @ b, draw(*shapes), False)
    check(lambda a, b: a.matmul(b), draw(*shapes), False)


FUNCTIONS: list[tuple[Fn, Fn]] = [
    (lambda x, y: F.concat([x, y], dim=1), lambda x, y: torch.cat([x, y], 1)),
    (lambda x, y: F.cat([x, y, x]), lambda x, y: torch.cat([x, y, x])),
    (lambda x, y: F.stack([x, y], dim=1), lambda x, y: torch.stack([x, y], 1)),
    (lambda x, y: F.stack([x, y], -1), lambda x, y: torch.stack([x, y], -1)),
    (lambda x, y: F.where(x > y, x, 0.0), lambda x, y: torch.where(x > y, x, 0.0)),
    (lambda x, y: F.where(x > y, 1.0, y), lambda x, y: torch.where(x > y, 1.0, y)),
    (lambda x, y: F.maximum(x, 0.25) + F.minimum(0.25, y), lambda x, y: x.clamp(min=0.25) + y.clamp(max=0.25)),
    (lambda x, y: F.einsum("ij,kj->ik", x, y), lambda x, y: torch.einsum("ij,kj->ik", x, y)),
    (lambda x, y: F.einsum("ij, kj", x, y), lambda x, y: torch.einsum("ij,kj", x, y)),
    (lambda x, y: F.einsum("...j->...", x), lambda x, y: torch.einsum("...j->...", x)),
    (lambda x, y: F.linear(x, y), TF.linear),
    (lambda x, y: F.outer(x[0], y[0]), lambda x, y: torch.outer(x[0], y[0])),
    (lambda x, y: F.gelu(x) + F.gelu(y, "tanh"), lambda x, y: TF.gelu(x) + TF.gelu(y, approximate="tanh")),
    (lambda x, y: F.silu(x) + F.relu(y) + F.tanh(x) + F.sigmoid(y), lambda x, y: TF.silu(x) + TF.relu(y) + x.tanh() + y.sigmoid()),
    (lambda x, y: F.softplus(x) + F.elu(y, 0.5) + F.mish(x), lambda x, y: TF.softplus(x) + TF.elu(y, 0.5) + TF.mish(x)),
    (
        lambda x, y: F.leaky_relu(x, 0.2) + F.hard_swish(y) + F.hard_sigmoid(x),
        lambda x, y: TF.leaky_relu(x, 0.2) + TF.hardswish(y) + TF.hardsigmoid(x),
    ),
    (lambda x, y: F.softmax(x, 0) + F.log_softmax(y), lambda x, y: TF.softmax(x, 0) + TF.log_softmax(y, -1)),
    (lambda x, y: F.normalize(x) + F.dropout(y, 0.1), lambda x, y: TF.normalize(x, dim=-1) + y),
    (lambda x, y: F.pad(x, (1, 2)) + F.pad(y, (1, 2), value=3.0), lambda x, y: TF.pad(x, (1, 2)) + TF.pad(y, (1, 2), value=3.0)),
    (lambda x, y: F.pad(x, (1, 2, 0, 3)), lambda x, y: TF.pad(x, (1, 2, 0, 3))),
    (lambda x, y: F.pad(x[None], (2, 1), "reflect"), lambda x, y: TF.pad(x[None], (2, 1), "reflect")),
    (lambda x, y: F.pad(x[None], (2, 1), "replicate"), lambda x, y: TF.pad(x[None], (2, 1), "replicate")),
    (lambda x, y: F.layer_norm(x, y[0], y[1], 1e-3), lambda x, y: TF.layer_norm(x, (5,), y[0], y[1], 1e-3)),
    (lambda x, y: F.layer_norm(x), lambda x, y: TF.layer_norm(x, (5,))),
    (lambda x, y: F.rms_norm(x, y[0], 1e-3), lambda x, y: TF.rms_norm(x, (5,), y[0], 1e-3)),
    (lambda x, y: F.eye(5, x.dtype) + x[:1], lambda x, y: torch.eye(5, dtype=x.dtype) + x[:1]),
    (
        lambda x, y: x + F.arange(5) * F.arange(1, 6) - F.arange(10, 0, -2),
        lambda x, y: x + torch.arange(5) * torch.arange(1, 6) - torch.arange(10, 0, -2),
    ),
    (lambda x, y: F.one_hot(F.arange(4), 6), lambda x, y: TF.one_hot(torch.arange(4), 6)),
    (lambda x, y: F.zeros(2, 3) + F.ones(3) * F.full((2, 3), 7.0), lambda x, y: torch.zeros(2, 3) + torch.ones(3) * torch.full((2, 3), 7.0)),
    (
        lambda x, y: F.zeros_like(x) + F.ones_like(y) + F.full_like(x, 2),
        lambda x, y: torch.zeros_like(x) + torch.ones_like(y) + torch.full_like(x, 2),
    ),
    (lambda x, y: F.topk(x, 2), lambda x, y: torch.topk(x, 2)),
]


@pytest.mark.parametrize("ours_theirs", FUNCTIONS)
def test_functions(ours_theirs: tuple[Fn, Fn]) -> None:
    check(ours_theirs[0], draw((4, 5), (4, 5)), False, ours_theirs[1])


def test_symbolic_ranges() -> None:
    def fn(x: Any) -> Any:
        n, _ = x.shape
        return F.arange(n), F.arange(1, n, 2), F.arange(n, 0, -1), F.full((n, 2), n), x * n + n, F.tensor(n)

    results = evaluate(trace(fn, DType.f64["n", 2]), np.ones((7, 2)))
    wanted = (np.arange(7), np.arange(1, 7, 2), np.arange(7, 0, -1), np.full((7, 2), 7), np.full((7, 2), 14.0), np.array(7))
    for have, want in zip(results, wanted, strict=True):
        np.testing.assert_array_equal(have, want)


def test_layers() -> None:
    q, k, v = draw((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 8))
    mask = np.random.default_rng(1).random((2, 1, 3, 5)) < 0.7
    mask[..., 0] = True
    check(
        lambda q, k, v, m: F.attention(q, k, v, m),
        [q, k, v, mask],
        False,
        lambda q, k, v, m: TF.scaled_dot_product_attention(q, k, v, m, enable_gqa=True),
    )
    check(
        lambda q, k: F.attention(q, k, k, causal=True, scale=0.3),
        [q, q],
        True,
        lambda q, k: TF.scaled_dot_product_attention(q, k, k, is_causal=True, scale=0.3),
    )
    x, w, b = draw((2, 4, 9), (6, 2, 3), (6,))
    check(lambda x, w, b: F.conv1d(x, w, b, 2, 1, 1, 2), [x, w, b], False, lambda x, w, b: TF.conv1d(x, w, b, 2, 1, 1, 2))
    x, w, b = draw((2, 3, 8, 9), (4, 3, 2, 2), (4,))
    check(lambda x, w, b: F.conv2d(x, w, b, (2, 1), (1, 0)), [x, w, b], False, lambda x, w, b: TF.conv2d(x, w, b, (2, 1), (1, 0)))
    table, ids = draw((7, 3))[0], np.array([[0, 6, 2], [1, 1, 5]])
    check(lambda t, i: F.embedding(i, t), [table, ids], False, lambda t, i: TF.embedding(i, t))
    angle = draw((5, 3))[0]
    x = draw((2, 4, 5, 8))[0]
    cos, sin = np.cos(angle), np.sin(angle)
    have = evaluate(trace(lambda x, c, s: F.rope(x, c, s), *(DType.f64[a.shape] for a in (x, cos, sin))), x, cos, sin)
    first, second = x[..., :3], x[..., 3:6]
    np.testing.assert_allclose(have, np.concatenate([first * cos - second * sin, second * cos + first * sin, x[..., 6:]], -1), rtol=1e-12)


def test_numpy_meanings_of_axis() -> None:
    x = draw(X)[0]

    def fn(x: Any) -> Any:
        return (
            x.max(axis=1), x.min(axis=2, keepdims=True), x.std(axis=1), x.var(axis=(0, 2)), x.sum(axis=1), x.mean(axis=0),
            x.argmax(axis=1), x.cumsum(axis=2), x.transpose(), x.transpose((1, 2, 0)), x.astype(np.float32), x.softmax(axis=1).sum(axis=1),
            x.take(np.array([0, 2]), axis=2), x.clip(0, 1), x.repeat(2, axis=1), x.ravel(), x.squeeze(axis=0), x.roll(1, axis=1), x[::-1], x[:, ::-2],
        )  # fmt: skip

    wanted = (
        x.max(1), x.min(2, keepdims=True), x.std(1), x.var((0, 2)), x.sum(1), x.mean(0),
        x.argmax(1), x.cumsum(2), x.transpose(), x.transpose(1, 2, 0), x.astype(np.float32), np.ones((3, 5)),
        x.take([0, 2], 2), x.clip(0, 1), x.repeat(2, 1), x.ravel(), x, np.roll(x, 1, 1), x[::-1], x[:, ::-2],
    )  # fmt: skip
    results = evaluate(trace(fn, DType.f64[X]), x)
    for have, want in zip(results, wanted, strict=True):
        assert have.dtype == want.dtype
        np.testing.assert_allclose(have, want, rtol=1e-12)


def test_complex_numbers() -> None:
    a, b = draw((3, 4), (3, 4))
    check(
        lambda a, b: (F.make_complex(a, b).real, F.make_complex(a, b).imag, abs(F.make_complex(a, b)), (F.make_complex(a, b) * 1j).real),
        [a, b],
        True,
        lambda a, b: (a, b, torch.complex(a, b).abs(), -b),
    )
    check(lambda a, b: F.make_complex(a, b).conj() * (a + 0j), [a, b], True, lambda a, b: torch.complex(a, b).conj().resolve_conj() * a)
