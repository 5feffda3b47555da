"""Symbolic dims: normal forms, evaluation, division laws, bounds and the questions that facts answer."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trustformers_ir.ir.dims import (
    Dim,
    Facts,
    SymbolFact,
    SymExpr,
    UndecidedDim,
    as_symbol,
    evaluate,
    floordiv,
    maximum,
    minimum,
    mod,
    parse_dim,
    product,
    substitute,
    symbol,
    symbols_of,
)

A, B, N = symbol("a"), symbol("b"), symbol("n")
NAMES = ("a", "b", "n")

envs = st.fixed_dictionaries({name: st.integers(0, 9) for name in NAMES})


@st.composite
def trees(draw: st.DrawFn, depth: int = 4) -> tuple[Dim, object]:
    """A dim together with a Python function that computes it directly."""
    if depth == 0 or draw(st.booleans()):
        if draw(st.booleans()):
            value = draw(st.integers(-6, 12))
            return value, lambda env, v=value: v
        name = draw(st.sampled_from(NAMES))
        return symbol(name), lambda env, k=name: env[k]
    kind = draw(st.sampled_from(["+", "-", "*", "//", "%", "min", "max"]))
    x, fx = draw(trees(depth=depth - 1))
    if kind in ("//", "%"):
        k = draw(st.integers(-4, 7).filter(bool))
        if kind == "//":
            return floordiv(x, k), lambda env: fx(env) // k
        return mod(x, k), lambda env: fx(env) % k
    y, fy = draw(trees(depth=depth - 1))
    if kind == "+":
        return x + y, lambda env: fx(env) + fy(env)
    if kind == "-":
        return x - y, lambda env: fx(env) - fy(env)
    if kind == "*":
        return x * y, lambda env: fx(env) * fy(env)
    if kind == "min":
        return minimum(x, y), lambda env: min(fx(env), fy(env))
    return maximum(x, y), lambda env: max(fx(env), fy(env))


dims = trees().map(lambda pair: pair[0])


@st.composite
def facts_and_values(draw: st.DrawFn) -> tuple[Facts, dict[str, int]]:
    """Facts together with values that satisfy them."""
    facts, env = Facts(), {}
    for name in NAMES:
        divisor = draw(st.sampled_from([1, 1, 2, 3, 4]))
        low, span = draw(st.integers(0, 8)), draw(st.integers(0, 12))
        first = -(-low // divisor)
        value = draw(st.integers(first, first + span)) * divisor
        high = draw(st.sampled_from([None, max(value, low) + draw(st.integers(0, 5))]))
        facts.declare(name, SymbolFact(low, high, divisor))
        env[name] = value
    return facts, env


@given(trees(), envs)
def test_evaluation_is_a_homomorphism(tree: tuple[Dim, object], env: dict[str, int]) -> None:
    dim, direct = tree
    assert evaluate(dim, env) == direct(env)  # type: ignore[operator]


@given(dims)
def test_the_text_is_parsed_back_to_the_same_dim(dim: Dim) -> None:
    assert parse_dim(str(dim)) == dim


@given(dims, dims, dims)
def test_ring_laws_hold_structurally(x: Dim, y: Dim, z: Dim) -> None:
    assert x + y == y + x
    assert x * y == y * x
    assert (x + y) + z == x + (y + z)
    assert (x * y) * z == x * (y * z)
    assert x * (y + z) == x * y + x * z
    assert x - x == 0
    assert x + 0 == x * 1 == x
    assert hash(x + y) == hash(y + x)


@given(dims, st.integers(1, 9))
def test_quotient_and_remainder_make_the_whole(x: Dim, k: int) -> None:
    for env in ({"a": 0, "b": 1, "n": 2}, {"a": 7, "b": 3, "n": 5}):
        q, r = evaluate(floordiv(x, k), env), evaluate(mod(x, k), env)
        assert q * k + r == evaluate(x, env)
        assert 0 <= r < k


@given(dims, st.integers(1, 9))
def test_multiples_divide_exactly(x: Dim, k: int) -> None:
    assert floordiv(x * k, k) == x
    assert mod(x * k, k) == 0


@given(dims, st.fixed_dictionaries(dict.fromkeys(NAMES, dims)), envs)
@settings(max_examples=50, deadline=None)
def test_substitution_then_evaluation_is_evaluation_of_the_values(dim: Dim, replacement: dict[str, Dim], env: dict[str, int]) -> None:
    values = {name: evaluate(d, env) for name, d in replacement.items()}
    assert evaluate(substitute(dim, replacement), env) == evaluate(dim, values)


@given(dims, facts_and_values())
def test_bounds_contain_every_value(dim: Dim, known: tuple[Facts, dict[str, int]]) -> None:
    facts, env = known
    low, high = facts.bounds(dim)
    assert low <= evaluate(dim, env) <= high


@given(dims, dims, facts_and_values())
@settings(max_examples=300, deadline=None)
def test_decisions_agree_with_the_values(x: Dim, y: Dim, known: tuple[Facts, dict[str, int]]) -> None:
    facts, env = known
    vx, vy = evaluate(x, env), evaluate(y, env)
    for question, answer in ((facts.equal, vx == vy), (facts.less_equal, vx <= vy)):
        try:
            decided = question(x, y)
        except UndecidedDim:
            continue
        assert decided == answer


@given(dims, st.integers(1, 6), facts_and_values())
def test_proven_divisors_divide(dim: Dim, k: int, known: tuple[Facts, dict[str, int]]) -> None:
    facts, env = known
    if facts.divisible(dim, k):
        assert evaluate(dim, env) % k == 0


# --- examples ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (A + 1, "a + 1"),
        (2 * A * A - B, "2*a*a - b"),
        (3 - A, "-a + 3"),
        (floordiv(A + 3, 4), "(a + 3)//4"),
        (floordiv(4 * A + 3, 4), "a"),
        (floordiv(6 * A + 3, 4), "a + (2*a + 3)//4"),
        (floordiv(floordiv(A, 2), 3), "a//6"),
        (floordiv(A * B, B), "a"),
        (mod(5 * A + 7, 5), 2),
        (mod(A, 4) * B, "(a%4)*b"),
        (minimum(A, A + 1), "a"),
        (maximum(A, A + 1), "a + 1"),
        (minimum(B, A), "min(a, b)"),
        (product((A, 2, B)), "2*a*b"),
    ],
)
def test_normal_forms(dim: Dim, text: str | int) -> None:
    assert str(dim) == str(parse_dim(str(text)))
    assert dim == parse_dim(str(text))


def test_symbols() -> None:
    assert as_symbol(A) == "a"
    assert as_symbol(2 * A) is None
    assert as_symbol(3) is None
    assert symbols_of(A + floordiv(B, 2), 7, minimum(N, 3)) == {"a", "b", "n"}
    for bad in ("", "1a", "a-b", "min", "max", "a b"):
        with pytest.raises(ValueError, match="not a symbol name"):
            symbol(bad)


def test_a_symbolic_dim_has_no_truth_value() -> None:
    with pytest.raises(UndecidedDim, match="truth value"):
        bool(A)


@pytest.mark.parametrize(
    "text", ["", "a +", "a b", "(a", "a)", "2a", "a // 0", "a % 0", "min(a)", "a..b", "-", "a ** 2", "é", "(" * 80 + "a"]
)
def test_what_is_not_a_dim(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (the message differs; that it is a ValueError is the contract)
        parse_dim(text)


def test_long_and_deep_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="4096"):
        parse_dim("a+" * 3000 + "a")
    with pytest.raises(ValueError, match="nested"):
        parse_dim("(" * 100 + "a" + ")" * 100)


@pytest.mark.parametrize(
    "text",
    [
        "-" * 4000 + "a",
        "a" + "%3%2" * 900,
        "min(a," * 70 + "b" + ")" * 70,
        "*".join(["(a+b+c+d+e)"] * 300),
        "*".join(f"(a{i}//2)" for i in range(500)),
        "9" * 5000,
    ],
)
def test_texts_that_would_take_long_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"nested|terms|limit"):
        parse_dim(text, 1 << 16)


FACTS = Facts({"n": SymbolFact(1, 512), "s": SymbolFact(8, 4096, 8), "one": SymbolFact(1, 1), "z": SymbolFact(0)})
S, ONE, Z = symbol("s"), symbol("one"), symbol("z")


@pytest.mark.parametrize(
    ("a", "b", "answer"),
    [
        (N, N, True),
        (N + 1, N, False),
        (2 * N, 3, False),
        (ONE, 1, True),
        (S, 12, False),
        (S, 4097, False),
        (floordiv(S, 8) * 8, S, True),
        (floordiv(S, 4) * 4, S, True),
        (mod(S, 4), 0, True),
        (N * ONE, N, True),
        (mod(N, 7), 7, False),
    ],
)
def test_equalities_that_facts_decide(a: Dim, b: Dim, answer: bool) -> None:
    assert FACTS.equal(a, b) is answer
    assert FACTS.is_equal(a, b) is answer


@pytest.mark.parametrize(
    ("a", "b", "answer"),
    [
        (1, N, True),
        (N, 512, True),
        (513, N, False),
        (minimum(N, 5), N, True),
        (minimum(N, 5), 5, True),
        (0, N - minimum(N, 7), True),
        (N, maximum(N, 7), True),
        (floordiv(N, 4) * 4, N, True),
        (N, floordiv(N + 3, 4) * 4, True),
        (mod(N, 4), N, True),
        (floordiv(N - 1, 2) + 1, N, True),
        (0, floordiv(N - 3, 2) + 1, True),
        (N, 2 * N, True),
        (N + 1, minimum(N, 5), False),
        (8, S, True),
        (minimum(minimum(N, Z), 5), Z, True),
    ],
)
def test_orders_that_facts_decide(a: Dim, b: Dim, answer: bool) -> None:
    assert FACTS.less_equal(a, b) is answer
    assert FACTS.is_less_equal(a, b) is answer


def test_open_questions_name_the_missing_fact() -> None:
    missing = r"cannot decide whether n == 5; a fact that settles 'n - 5' against 0 is missing .*n: \[1, 512\]"
    with pytest.raises(UndecidedDim, match=missing):
        FACTS.equal(N, 5)
    with pytest.raises(UndecidedDim, match="q: nothing"):
        FACTS.less_equal(symbol("q"), 5)
    assert not FACTS.is_equal(N, 5)
    assert not FACTS.is_less_equal(N, 5)


def test_bounds() -> None:
    assert FACTS.bounds(7) == (7, 7)
    assert FACTS.bounds(N) == (1, 512)
    assert FACTS.bounds(3 - N) == (-509, 2)
    assert FACTS.bounds(symbol("q")) == (0, inf)
    assert FACTS.bounds(N - Z) == (-inf, 512)
    assert FACTS.bounds(floordiv(N, 4) * 4 - N) == (-3, 0)
    assert FACTS.bounds(N - floordiv(N, 4) * 4) == (0, 3)
    assert FACTS.bounds(N - minimum(N, 5)) == (0, 507)
    assert Facts({"s": SymbolFact(3, 30, 8)}).bounds(S) == (8, 24)
    big = 2**60
    assert Facts({"n": SymbolFact(big, big + 1)}).bounds(N + 1) == (big + 1, big + 2)  # exact beyond 2**53


def test_divisors() -> None:
    assert FACTS.divisor_of(6 * S) == 48
    assert FACTS.divisor_of(6 * S + 4) == 4
    assert FACTS.divisor_of(0) == 0
    assert FACTS.divisible(S * N, 8)
    assert not FACTS.divisible(N, 2)


def test_declare_keeps_what_is_known() -> None:
    facts = Facts()
    assert facts.declare("n") == N
    facts.declare("n", SymbolFact(2, 4))
    facts.declare("n")
    assert facts.symbols["n"] == SymbolFact(2, 4)
    copy = facts.copy()
    copy.declare("m")
    assert "m" not in facts.symbols


@pytest.mark.parametrize(("low", "high", "divisor"), [(-1, None, 1), (3, 2, 1), (1, 2, 0)])
def test_impossible_facts(low: int, high: int | None, divisor: int) -> None:
    with pytest.raises(ValueError, match="impossible facts"):
        SymbolFact(low, high, divisor)


def test_a_fact_admits() -> None:
    fact = SymbolFact(4, 16, 4)
    assert [v for v in range(20) if fact.admits(v)] == [4, 8, 12, 16]
    assert str(fact) == "[4, 16] % 4"
    assert str(SymbolFact()) == "[1, inf]"


def test_operators_with_plain_numbers() -> None:
    assert isinstance(5 - N, SymExpr)
    assert 6 * N // 3 == 2 * N
    assert (6 * N + 1) % 3 == 1
    assert floordiv(7, N) == parse_dim("7//n")
    assert str(7 // N) == "(7//n)"
    assert -N + N == 0
