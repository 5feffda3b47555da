"""The simplifier keeps every value, and makes the forms that the emitter relies on."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from trustformers_ir.codegen.kernel_ir.kernel import Kernel, walk
from trustformers_ir.codegen.kernel_ir.nodes import Axis, Buffer, Expr, Load, Sym, binary, const, maximum, minimum
from trustformers_ir.codegen.kernel_ir.simplify import Simplifier, SymbolFacts
from trustformers_ir.ir.dtypes import DType

M, S = Sym("m"), Sym("s")
FACTS: SymbolFacts = {"m": (1, None, 1), "s": (16, 4096, 16)}
A, V, I, R = Axis("a", 100), Axis("v", 16), Axis("i", M), Axis("r", 8)
B = Axis("b", (M + 7) // 8)


def simple(e: Expr) -> str:
    return repr(Simplifier(FACTS)(e))


def test_forms() -> None:
    assert simple((A * 16 + V) // 64) == "(a // 4)"
    assert simple((A * 16 + V) % 64) == "(((a % 4) * 16) + v)"
    assert simple((A * 16 + V) // 16) == "a"
    assert simple((I * M + I) // M) == "i"
    assert simple((I * M + I) % M) == "i"
    assert simple(((I * S + V) // S) * S + (I * S + V) % S) == "((i * s) + v)"
    assert simple((S // 16) * 16) == "s"
    assert simple(((A * 16 + V) // 4) // 8) == "(a // 2)"
    assert simple(I < M) == "true"
    assert simple(B * 8 < M) == "true"
    assert simple(B * 8 + R < M) == "(((b * 8) + r) < m)"
    assert simple(minimum(B * 8 + R, M - 1)) == "min(((b * 8) + r), (m - 1))"
    assert simple(minimum(B * 8, M)) == "(b * 8)"
    assert simple(maximum(V, 16)) == "16"


def test_proofs() -> None:
    s = Simplifier(FACTS)
    assert s.proves_less(minimum(B * 8 + R, M - 1), M)
    assert not s.proves_less(B * 8 + R, M)
    assert s.proves_less(I * S + V, M * S)
    assert s.divisor(S * 3 + 32) == 16


@st.composite
def expressions(draw: st.DrawFn, depth: int = 4) -> Expr:
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from([A, V, I, R, B, M, S, *[const(c) for c in (0, 1, 2, 3, 7, 8, 16, 64, -5)]]))
    a, b = draw(expressions(depth=depth - 1)), draw(expressions(depth=depth - 1))
    op = draw(st.sampled_from(["add", "add", "sub", "mul", "floordiv", "floordiv", "mod", "mod", "min", "max", "lt", "le", "eq", "ge"]))
    e = binary(op, a, b)
    if e.dtype is DType.bool:
        from trustformers_ir.codegen.kernel_ir.nodes import select

        return select(e, a, b)
    return e


def test_products_of_data_and_high_powers_stay_as_they_are() -> None:
    """Squaring again and again would double the degree each time: 2^63 factors for an integer power."""
    x = Load(Buffer("x", DType.i64, (const(100),)), (A,))
    data, index = x + 1, I + A
    for _ in range(63):
        data, index = data * data, index * index
    for e in (data, index):
        simplified = Simplifier(FACTS)(e)
        assert len(set(walk(simplified))) < 400


@settings(max_examples=400, deadline=None)
@given(expressions(), st.integers(1, 70), st.integers(1, 4), st.data())
def test_values_are_kept(e: Expr, m: int, s16: int, data: st.DataObject) -> None:
    from trustformers_ir.codegen.kernel_ir.interpret import _Environment

    simplifier = Simplifier(FACTS)
    simplified = simplifier(e)
    assert simplifier(simplified) is simplified
    env = _Environment(Kernel("k", (), ()), (), {"m": m, "s": 16 * s16}, None, False)
    for _ in range(5):
        for axis in (A, V, I, R, B):
            env.axes[axis] = data.draw(st.integers(0, int(env.value(axis.extent)) - 1))
        value = int(env.value(e))
        assert value == int(env.value(simplified))
        lo, hi = simplifier.bounds(e)
        assert (lo is None or lo <= value) and (hi is None or value <= hi)
        assert value % max(simplifier.divisor(e), 1) == 0 or e.dtype is not DType.i64
        if simplifier.proves_nonneg(e):
            assert value >= 0
