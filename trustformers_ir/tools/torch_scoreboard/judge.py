"""Samples of torch through ``torch.export``, our graph, its reference evaluator and native code, each compared with eager torch.

Many samples are one program; where that fails it is cut into parts, until each failing sample stands alone.
"""

from __future__ import annotations

import enum
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.frontend.torch_export.export import export
from trustformers_ir.frontend.torch_export.read import import_program
from trustformers_ir.frontend.torch_export.registry import ATEN
from trustformers_ir.frontend.torch_export.weights import as_array
from trustformers_ir.ir.diagnostics import Code, CompilerError, Diagnostic
from trustformers_ir.tools.torch_scoreboard.freedom import is_open, may_differ
from trustformers_ir.tools.torch_scoreboard.precise import apart, as_eager, precise, rounds
from trustformers_ir.tools.torch_scoreboard.samples import Sample, Unit

BATCH = 64  # samples of a program
PARTS = 6  # into which a program that fails is cut
WAYS = ("reference", "native")
#: codes that say what is not supported
CLEAR = (
    *(Code.TORCH_OP, Code.TORCH_DATA_DEPENDENT, Code.TORCH_MUTATION, Code.TORCH_RESULT, Code.TORCH_DEVICE),
    *(Code.UNSUPPORTED_OP, Code.UNSUPPORTED_DTYPE, Code.UNSUPPORTED_SHAPE),
)


class Status(enum.Enum):
    """What came of a sample. ``WRONG`` and ``FAILED`` are defects."""

    AGREES = "agrees"
    ROUNDS = "rounds"  # a sum of products in f32 that is off by more than the tolerance, and by no more than its additions round
    OPEN = "open"  # as right as eager's, where torch does not say what has to come out (freedom.py)
    REFUSED = "refused"  # an error that says what is not supported
    NO_EAGER = "no eager"  # torch itself raises
    WRONG = "WRONG"  # other numbers, shapes or dtypes
    FAILED = "FAILED"  # another error, or no error of ours


@dataclass(frozen=True)
class Verdict:
    status: Status
    detail: str = ""


@dataclass
class Outcome:
    """What came of the samples of one op at one dtype, each way."""

    op: str
    dtype: str
    samples: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=lambda: {w: {} for w in WAYS})  # way -> status -> samples
    reasons: dict[str, dict[str, int]] = field(default_factory=lambda: {w: {} for w in WAYS})  # way -> why it is refused -> samples
    bad: list[str] = field(default_factory=list)
    reached: list[str] = field(default_factory=list)  # overloads of ATen in programs that were read

    def add(self, sample: Sample, way: str, verdict: Verdict) -> None:
        counts = self.counts[way]
        counts[verdict.status.value] = counts.get(verdict.status.value, 0) + 1
        if verdict.status is Status.REFUSED:
            self.reasons[way][verdict.detail] = self.reasons[way].get(verdict.detail, 0) + 1
        elif verdict.status in (Status.WRONG, Status.FAILED):
            self.bad.append(f"{way}: {verdict.status.value} {sample.shown()}: {verdict.detail}")

    def of(self, way: str, *statuses: Status) -> int:
        return sum(self.counts[way].get(s.value, 0) for s in statuses)

    @property
    def ok(self) -> bool:
        return not self.bad


@dataclass
class _Done:
    """The verdicts so far, and the overloads of ATen that each op and dtype reached."""

    verdicts: list[tuple[Sample, str, Verdict]] = field(default_factory=list)
    reached: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def every(self, sample: Sample, ways: Sequence[str], verdict: Verdict) -> None:
        self.verdicts += [(sample, w, verdict) for w in ways]


def run(units: Sequence[Unit], most: int = 0, ways: Sequence[str] = WAYS) -> list[Outcome]:
    """The samples of some ops and dtypes (at most ``most`` of each; 0: all)."""
    samples = [unit.samples(most) for unit in units]
    outcomes = {(u.op, u.dtype): Outcome(u.op, u.dtype, len(some)) for u, some in zip(units, samples, strict=True)}
    done = _Done()
    _batches([some[0] for some in samples if some], ways, done)
    refused = {s.unit for s, _, verdict in done.verdicts if verdict.status is not Status.AGREES}
    for alike in (False, True):  # a program with something refused is made again without it: so what is refused comes together
        _batches([s for some in samples for s in some[1:] if (s.unit in refused) is alike], ways, done)
    for sample, way, verdict in done.verdicts:
        outcomes[sample.unit].add(sample, way, verdict)
    for unit, names in done.reached.items():
        outcomes[unit].reached = sorted(names)
    return list(outcomes.values())


def judged(samples: Sequence[Sample], ways: Sequence[str] = WAYS) -> list[tuple[Sample, str, Verdict]]:
    """The verdicts of samples as one program."""
    done = _Done()
    _judge(samples, ways, done)
    return done.verdicts


def _batches(samples: Sequence[Sample], ways: Sequence[str], done: _Done) -> None:
    for start in range(0, len(samples), BATCH):
        _judge(samples[start : start + BATCH], ways, done)


class _NotRead(Exception):
    """A program of several samples that is not read: those of which the error says why not, those that it may be about, and the others."""

    def __init__(self, refused: dict[int, Verdict], named: set[int]) -> None:
        super().__init__()
        self.refused, self.named = refused, named


def _judge(samples: Sequence[Sample], ways: Sequence[str], done: _Done) -> None:
    """The verdicts of samples as one program, or of parts of it where one of them fails."""
    wanted: list[Any] = []
    left: list[Sample] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sample in samples:
            try:
                wanted.append(as_eager(sample))
                left.append(sample)
            except Exception as error:
                done.every(sample, ways, Verdict(Status.NO_EAGER, _said(error)))
        if left:
            _against(left, wanted, ways, done)


def _against(samples: Sequence[Sample], wanted: Sequence[Any], ways: Sequence[str], done: _Done) -> None:
    try:
        found = _executed(samples, ways, done)
    except _NotRead as error:
        for n, verdict in error.refused.items():
            done.every(samples[n], ways, verdict)
        for n in error.named:
            _judge([samples[n]], ways, done)
        _judge([s for n, s in enumerate(samples) if n not in error.refused and n not in error.named], ways, done)
        return
    except Exception as error:
        if len(samples) == 1:
            done.every(samples[0], ways, _refusal(error))
        else:
            _parts(samples, ways, done)
        return
    for way, got in found.items():
        if not isinstance(got, Exception):
            done.verdicts += [(s, way, _compared(s, a, b)) for s, a, b in zip(samples, got, wanted, strict=True)]
        elif len(samples) == 1:
            done.every(samples[0], (way,), _refusal(got))
        else:
            _parts(samples, (way,), done)


def _parts(samples: Sequence[Sample], ways: Sequence[str], done: _Done) -> None:
    size = -(-len(samples) // PARTS)
    for start in range(0, len(samples), size):
        _judge(samples[start : start + size], ways, done)


def _program(samples: Sequence[Sample]) -> Any:
    """A module that makes the calls one behind the other, each in a module of its own, so that a graph says whose its nodes are."""
    import torch

    class Call(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, sample: Sample) -> None:
            super().__init__()
            self.sample = sample

        def forward(self, *tensors: Any) -> Any:
            return self.sample.call(iter(tensors))

    class Calls(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.calls = torch.nn.ModuleList([Call(s) for s in samples])

        def forward(self, *tensors: Any) -> list[Any]:
            feed = iter(tensors)
            return [call(*[next(feed) for _ in call.sample.tensors()]) for call in self.calls]

    return Calls().eval()


def _executed(samples: Sequence[Sample], ways: Sequence[str], done: _Done) -> dict[str, Any]:
    """What each way gives for the samples as one program, or what it raised. Raises what reading the program raises."""
    tensors = tuple(t for s in samples for t in s.tensors())
    exported = export(_program(samples), tensors, ())
    called = _called(exported.program)
    for n, names in called.items():
        done.reached.setdefault(samples[n].unit, set()).update(name.removeprefix("aten.") for name in names)
    try:
        module = import_program(exported, "samples")
    except CompilerError as error:
        raise _sorted_out(error, called, len(samples)) from error
    runs: dict[str, Callable[[], Any]] = {"reference": lambda: _evaluated(module, tensors), "native": lambda: _native(module, tensors)}
    found: dict[str, Any] = {}
    for way in ways:
        try:
            found[way] = runs[way]()
        except Exception as error:
            found[way] = error
    return found


def _called(program: Any) -> dict[int, set[str]]:
    """The ops in the graph of each sample."""
    found: dict[int, set[str]] = {}
    for node in program.graph.nodes:
        at = [_CALL.search(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()] if node.op == "call_function" else []
        for match in at:
            if match:
                found.setdefault(int(match[1]), set()).add(str(node.target))
    return found


_CALL = re.compile(r"\bcalls\.(\d+)$")


_KNOWN = {name.removesuffix(".default") for name in ATEN}


def _sorted_out(error: CompilerError, called: Mapping[int, set[str]], count: int) -> Exception:
    """Which samples of a program the errors are about. One with an op that is never compiled is refused, as the diagnostic of that op says; one with
    an op that has a diagnostic, and that is compiled in other forms, has to be looked at alone."""
    said: dict[str, Diagnostic] = {}
    for d in error.diagnostics:
        said.setdefault(d.message.partition("(")[0], d)
    refused: dict[int, Verdict] = {}
    named: set[int] = set()
    for n, names in called.items():
        blamed = {name: said[op] for name in sorted(names) if (op := name.rpartition(".")[0]) in said}  # messages leave out the overload
        never = [d for name, d in blamed.items() if name.removeprefix("aten.").removesuffix(".default") not in _KNOWN and d.code in CLEAR]
        if never:
            refused[n] = _refusal(CompilerError(never[0]))
        elif blamed:
            named.add(n)
    return _NotRead(refused, named) if count > 1 and (refused or named) else error


def _evaluated(module: Any, tensors: Sequence[Any]) -> Any:
    outputs = tfir.evaluate(module, *[as_array(t) for t in tensors])
    return module.calling.results(tuple(_tensor(o) for o in (outputs if isinstance(outputs, tuple) else (outputs,))))


def _native(module: Any, tensors: Sequence[Any]) -> Any:
    import torch.utils._pytree as pytree

    found = tfir.compile(module, threads=1)(*tensors)
    return pytree.tree_map(lambda x: _tensor(x) if isinstance(x, np.ndarray) else x, found)  # arrays where no input is a tensor of torch


def _tensor(array: Any) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


# --- verdicts ----------------------------------------------------------------------------------------------------------------------


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _refusal(error: BaseException) -> Verdict:
    if not isinstance(error, CompilerError):
        return Verdict(Status.FAILED, _said(error))
    first = error.diagnostics[0]
    if first.code in CLEAR:
        call, _, why = first.message.partition("\n")[0].rpartition("): ")
        op = call.partition("(")[0]
        return Verdict(Status.REFUSED, f"{first.code.id} {op + ': ' if op else ''}{why}"[:160])
    return Verdict(Status.FAILED, f"{first.code.id} {' '.join(first.message.split())[:300]}")


def _compared(sample: Sample, got: Any, wanted: Any) -> Verdict:
    import torch
    import torch.utils._pytree as pytree

    mine = [x for x in pytree.tree_leaves(got) if isinstance(x, torch.Tensor)]
    theirs = [x for x in pytree.tree_leaves(wanted) if isinstance(x, torch.Tensor)]
    if len(mine) != len(theirs):
        return Verdict(Status.WRONG, f"{len(mine)} tensors, eager has {len(theirs)}")
    exact: list[Any] | None = None
    chosen = rounded = False  # chosen: other ones of equal elements
    for n, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return Verdict(Status.WRONG, f"{a.dtype}{list(a.shape)}, eager has {b.dtype}{list(b.shape)}")
        why = apart(a, b)
        if why and exact is None:
            exact = precise(sample)
        if why and exact is not None and n < len(exact):
            why = apart(a, b, exact[n])
        if why and exact is not None and n < len(exact) and rounds(sample, n, a, exact[n]):
            rounded = True
            continue
        if why and not may_differ(sample, a, b):
            return Verdict(Status.OPEN) if is_open(sample, theirs) else Verdict(Status.WRONG, why)
        chosen = chosen or bool(why)
    return Verdict(Status.OPEN if chosen else Status.ROUNDS if rounded else Status.AGREES)
