"""The pass manager: contracts, reports, verification, dumps; the text of pipelines."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trustformers_ir.ir import ops, rewriting
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Module
from trustformers_ir.ir.diagnostics import Code, CompilerError, InternalError
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.text import parse_module
from trustformers_ir.ir.verifier import check_module
from trustformers_ir.passes.manager import Pass, PassLog, PassManager, parse_pipeline

f32 = DType.f32


def chain(length: int = 3) -> Module:
    """``main(x)`` negates x so many times."""
    module = Module()
    block = Block([f32[4]], ["x"])
    module.add_function(Function("main", block))
    build = Builder(module, block)
    value = block.args[0]
    for _ in range(length):
        value = build(ops.Neg(), value)
    build.create(ops.Return(), value)
    return module


@dataclass(frozen=True)
class AbsForNeg(Pass):
    """Turns every ``neg`` into ``abs``."""

    name = "abs_for_neg"
    summary = "for tests"
    ensures = frozenset({"positive"})

    def run(self, module: Module, log: PassLog) -> None:
        for operation in module.walk():
            if isinstance(operation.op, ops.Neg):
                if rewriting.allowed():
                    operation.op = ops.Abs()
                    log.count("neg")
                else:
                    log.miss("neg", "no rewrites are left")
        log.note("looked at all of them")


@dataclass(frozen=True)
class NeedsPositive(Pass):
    name = "needs_positive"
    requires = frozenset({"positive"})

    def run(self, module: Module, log: PassLog) -> None:
        pass


@dataclass(frozen=True)
class Spoil(Pass):
    name = "spoil"
    breaks = frozenset({"positive"})

    def run(self, module: Module, log: PassLog) -> None:
        pass


@dataclass(frozen=True)
class Break(Pass):
    """Breaks the module in the way that it is asked to."""

    how: str = "type"

    name = "break"

    def run(self, module: Module, log: PassLog) -> None:
        if self.how == "raise":
            raise RuntimeError("a slip")
        if self.how == "refuse":
            raise CompilerError.of(Code.UNSUPPORTED_OP, "not this one")
        first = next(iter(module.main.body))
        first.results[0].type = f32[5]
        if self.how == "check":
            check_module(module)


def test_report_counts_ops_rewrites_and_notes() -> None:
    report = PassManager([AbsForNeg(), NeedsPositive()]).run(chain())
    first, second = report.passes
    assert (first.name, first.ops_before, first.ops_after, first.rewrites, first.notes) == ("abs_for_neg", 4, 4, 3, ["looked at all of them"])
    assert first.log.counts == {"neg": 3}
    assert (second.name, second.rewrites) == ("needs_positive", 0)
    assert report.rewrites == 3
    assert report.seconds >= first.seconds > 0
    text = str(report)
    assert "abs_for_neg" in text and "looked at all of them" in text and "neg: 3" in text
    assert json.loads(json.dumps(report.as_dict()))["passes"][0]["counts"] == {"neg": 3}


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4])
def test_stop_after_allows_that_many_rewrites(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFIR_STOP_AFTER", str(limit))
    module = chain()
    report = PassManager([AbsForNeg(), AbsForNeg()]).run(module)
    done = [isinstance(o.op, ops.Abs) for o in module.main.body][:-1]
    assert done == [i < limit for i in range(3)], "the first ones happen, the others do not"
    assert report.rewrites == min(limit, 3)
    assert report.passes[0].log.misses == ({("neg", "no rewrites are left"): 3 - limit} if limit < 3 else {})
    if limit < 3:
        assert "not neg: no rewrites are left" in str(report)


def test_the_count_goes_on_inside_one_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFIR_STOP_AFTER", "4")
    with rewriting.counting() as counter:
        PassManager([AbsForNeg()]).run(chain())
        second = chain()
        PassManager([AbsForNeg()]).run(second)
        assert counter.made == 4
        assert sum(isinstance(o.op, ops.Abs) for o in second.main.body) == 1
        with rewriting.counting(fresh=True) as other:
            assert rewriting.allowed() and other.made == 1
    assert rewriting.allowed(), "outside of a compilation nothing is counted"


def test_a_missing_property_is_an_error_before_anything_runs() -> None:
    module = chain()
    with pytest.raises(CompilerError) as caught:
        PassManager([NeedsPositive(), AbsForNeg(), Spoil(), NeedsPositive()]).run(module)
    assert caught.value.codes == (Code.PASS_CONTRACT, Code.PASS_CONTRACT)
    first, second = (d.message for d in caught.value.diagnostics)
    assert "'needs_positive' requires that the module is positive, and no pass before it ensures that" in first
    assert "'spoil' breaks that before it" in second
    assert caught.value.diagnostics[0].help == "run abs_for_neg before it"
    assert all(not isinstance(o.op, ops.Abs) for o in module.main.body)


def test_a_property_may_be_given() -> None:
    PassManager([NeedsPositive()], given={"positive"}).run(chain())
    with pytest.raises(CompilerError, match="'spoil' breaks that"):
        PassManager([Spoil(), NeedsPositive()], given={"positive"}).run(chain())


@pytest.mark.parametrize("how", ["type", "check"])
def test_a_pass_that_breaks_the_module_is_named(how: str) -> None:
    with pytest.raises(InternalError, match="the pass 'break") as caught:
        PassManager([AbsForNeg(), Break(how)], verify=True).run(chain())
    assert caught.value.codes[0] is Code.PASS_BROKE_MODULE
    assert len(caught.value.codes) > 1


def test_verification_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFIR_VERIFY", "0")
    PassManager([Break()]).run(chain())
    monkeypatch.setenv("TFIR_VERIFY", "1")
    with pytest.raises(InternalError):
        PassManager([Break()]).run(chain())


def test_an_invalid_input_is_not_blamed_on_a_pass() -> None:
    module = chain()
    next(iter(module.main.body)).results[0].type = f32[5]
    with pytest.raises(CompilerError, match="V4"):
        PassManager([NeedsPositive()], given={"positive"}, verify=True).run(module)


def test_errors_of_a_pass() -> None:
    with pytest.raises(InternalError, match=r"the pass 'break\{how=raise\}' failed: RuntimeError: a slip"):
        PassManager([Break("raise")]).run(chain())
    with pytest.raises(CompilerError, match="not this one"):
        PassManager([Break("refuse")]).run(chain())


def test_dumps_are_written_when_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFIR_DUMP_DIR", str(tmp_path / "dumps"))
    PassManager([NeedsPositive(), AbsForNeg(), Spoil()], given={"positive"}).run(chain())
    files = sorted((tmp_path / "dumps").iterdir())
    assert [f.name for f in files] == ["00-input.tfir", "02-abs_for_neg.tfir"]
    assert "neg" in files[0].read_text()
    assert sum(isinstance(o.op, ops.Abs) for o in parse_module(files[1].read_text()).main.body) == 3


# --- the text of a pipeline --------------------------------------------------------------------------------------------------------


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


@dataclass(frozen=True)
class Options(Pass):
    count: int = 1
    scale: float = 1.0
    flag: bool = False
    text: str = ""
    mode: Mode = Mode.FAST
    limit: int | None = None
    dtype: DType = DType.f32

    name = "options"


@dataclass(frozen=True)
class Demanding(Pass):
    size: int

    name = "demanding"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("size is at least 1")


REGISTRY: dict[str, type[Pass]] = {p.name: p for p in (AbsForNeg, NeedsPositive, Options, Demanding)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  ", []),
        ("options", [Options()]),
        ("abs_for_neg, options{count=3,flag=true} ,needs_positive", [AbsForNeg(), Options(count=3, flag=True), NeedsPositive()]),
        ("options{ mode = slow , text=a b}", [Options(mode=Mode.SLOW, text="a b")]),
        ("options{limit=7},options{limit=none}", [Options(limit=7), Options()]),
        ("options{scale=-2.5e-1,dtype=bf16,count=-4}", [Options(scale=-0.25, dtype=DType.bf16, count=-4)]),
        ("options{}", [Options()]),
        ("demanding{size=2}", [Demanding(2)]),
    ],
)
def test_pipelines(text: str, expected: list[Pass]) -> None:
    passes = parse_pipeline(text, REGISTRY)
    assert passes == expected
    assert parse_pipeline(",".join(map(str, passes)), REGISTRY) == passes, "a pass prints as what is read"


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("optoins", Code.UNKNOWN_PASS, "there is no pass 'optoins'.*\n.*did you mean 'options'"),
        ("zzz", Code.UNKNOWN_PASS, "the passes are abs_for_neg, demanding, needs_positive, options"),
        ("options{cuont=1}", Code.PASS_OPTION, "has no option 'cuont'.*\n.*did you mean 'count'"),
        ("options{zzz=1}", Code.PASS_OPTION, "its options are count, scale"),
        ("abs_for_neg{a=1}", Code.PASS_OPTION, "it has no options"),
        ("options{count=many}", Code.PASS_OPTION, "'count' of the pass 'options' takes a whole number, not 'many'"),
        ("options{count=1.5}", Code.PASS_OPTION, "takes a whole number"),
        ("options{scale=x}", Code.PASS_OPTION, "takes a number, not 'x'"),
        ("options{flag=maybe}", Code.PASS_OPTION, "takes true or false"),
        ("options{mode=medium}", Code.PASS_OPTION, "takes 'fast' or 'slow', not 'medium'"),
        ("options{limit=x}", Code.PASS_OPTION, "takes a whole number or none"),
        ("options{dtype=f33}", Code.PASS_OPTION, "takes a dtype, not 'f33'"),
        ("options{count}", Code.PASS_OPTION, "has no value"),
        ("options{count=1,count=2}", Code.PASS_OPTION, "given twice"),
        ("demanding", Code.PASS_OPTION, "'demanding'.*size"),
        ("demanding{size=0}", Code.PASS_OPTION, "size is at least 1"),
        ("options{count=1", Code.USAGE, "cannot be read from 'options{count=1'"),
        ("options,,options", Code.USAGE, "cannot be read"),
        ("options,", Code.USAGE, "cannot be read"),
        ("options options", Code.USAGE, "cannot be read"),
        ("options}", Code.USAGE, "cannot be read"),
    ],
)
def test_pipeline_errors(text: str, code: Code, message: str) -> None:
    with pytest.raises(CompilerError, match=message) as caught:
        parse_pipeline(text, REGISTRY)
    assert caught.value.codes == (code,)


def test_all_problems_of_a_pipeline_come_together() -> None:
    with pytest.raises(CompilerError) as caught:
        parse_pipeline("zzz,options{count=x,scale=y},yyy", REGISTRY)
    assert caught.value.codes == (Code.UNKNOWN_PASS, Code.PASS_OPTION, Code.PASS_OPTION, Code.UNKNOWN_PASS)


def test_base_pass_does_nothing_of_its_own() -> None:
    passed: Any = Options()
    with pytest.raises(NotImplementedError, match="options"):
        passed.run(chain(), PassLog())
