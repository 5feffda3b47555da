"""torch's own samples of its ops (``op_db``), through torch.export into our graph, compared with eager.

All samples of an op in one dtype become one program; where that fails they are taken one by one. ``python tests/frontend/torch_opinfo.py
--dtype float32 [--native] [--most 8] [ops]`` prints a row of JSON for each op and dtype.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.testing._internal.common_methods_invocations import op_db

import trustformers_ir as tfir
from trustformers_ir.frontend.torch_export.read import load_torch
from trustformers_ir.ir.diagnostics import Code, CompilerError

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
TOLERANCES = {torch.float16: (5e-3, 5e-3), torch.bfloat16: (3e-2, 3e-2)}
LARGEST = 4096  # elements of a sample's largest tensor
MOST = 24  # samples of an op and dtype

# What a sample of torch cannot be compared by: random numbers, memory that nobody wrote, and what is not a computation on dense tensors.
LEFT_OUT = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted", "resize_", "resize_as_", "to_sparse", "sparse",
    "normal", "uniform", "bernoulli", "multinomial", "cauchy", "exponential", "geometric", "log_normal", "randn", "randn_like", "rand_like",
    "randint", "randint_like", "nn.functional.dropout", "nn.functional.dropout2d", "nn.functional.dropout3d", "nn.functional.alpha_dropout",
    "nn.functional.feature_alpha_dropout", "nn.functional.rrelu", "nn.functional.fractional_max_pool2d", "nn.functional.fractional_max_pool3d",
    "svd_lowrank", "pca_lowrank", "nn.functional.scaled_dot_product_attention_dropout",
}  # fmt: skip


# Ops of which some samples do not agree, and why.
KNOWN = {"as_strided.partial_views": "its samples are views of larger memory, which is not given to the program"}


@dataclass
class Outcome:
    """What became of the samples of one op in one dtype."""

    op: str
    dtype: str
    agree: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # why -> how many samples
    differ: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    why: str = ""  # of the first that is refused

    @property
    def ok(self) -> bool:
        return not self.differ and not self.broken

    def row(self) -> dict[str, Any]:
        found = {"op": self.op, "dtype": self.dtype, "agree": self.agree, "refused": self.refused, "why": self.why}
        found |= {"differ": self.differ[:3], "broken": self.broken[:3]}
        return {k: v for k, v in found.items() if v or k == "agree"}


@dataclass(frozen=True)
class Sampled:
    """One call: the op and its arguments; tensors in them are what the program takes."""

    op: Any
    arguments: Any

    def tensors(self) -> list[torch.Tensor]:
        return [x for x in pytree.tree_leaves(self.arguments) if isinstance(x, torch.Tensor)]

    def call(self, tensors: Iterator[torch.Tensor]) -> Any:
        args, kwargs = pytree.tree_map(lambda x: next(tensors) if isinstance(x, torch.Tensor) else x, self.arguments)
        return self.op(*args, **kwargs)


class Program(torch.nn.Module):
    """Calls one behind the other."""

    def __init__(self, calls: Sequence[Sampled]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, *tensors: torch.Tensor) -> list[Any]:
        feed = iter(tensors)
        return [call.call(feed) for call in self.calls]


def samples(info: Any, dtype: torch.dtype, most: int = MOST) -> list[Sampled]:
    """The samples of an op that are small, dense and on the CPU."""
    torch.manual_seed(0)
    found: list[Sampled] = []
    for s in info.sample_inputs("cpu", dtype, requires_grad=False):
        arguments = ([s.input, *s.args], dict(s.kwargs))
        tensors = [x for x in pytree.tree_leaves(arguments) if isinstance(x, torch.Tensor)]
        if all(t.layout is torch.strided and t.numel() <= LARGEST for t in tensors):
            found.append(Sampled(info.op, pytree.tree_map(lambda x: x.detach().contiguous() if isinstance(x, torch.Tensor) else x, arguments)))
    if len(found) > most:
        step = len(found) / most
        found = [found[int(i * step)] for i in range(most)]
    return found


def compared(calls: Sequence[Sampled], native: bool) -> tuple[int, list[str]]:
    """How many calls agree with eager, and what is wrong with the others. ``CompilerError`` where they do not compile."""
    tensors = [t for c in calls for t in c.tensors()]
    program = Program(calls)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = program(*[t.clone() for t in tensors])
        if native:
            got = tfir.compile(program, tuple(tensors), dynamic=())(*tensors)
        else:
            module = load_torch(program, tuple(tensors), ())
            assert module.calling is not None
            arrays = [_array(t) for t in tensors]
            outputs = tfir.evaluate(module, *arrays)
            found = outputs if isinstance(outputs, tuple) else (outputs,)
            got = module.calling.results(tuple(_tensor(o) for o in found))
    good, bad = 0, []
    for n, (call, a, b) in enumerate(zip(calls, got, wanted, strict=True)):
        why = gap(call, a, b)
        good += not why
        bad += [f"sample {n} {shown(call)}: {why}"] if why else []
    return good, bad


def _array(t: torch.Tensor) -> Any:
    from trustformers_ir.frontend.torch_export.weights import as_array

    return as_array(t)


def _tensor(array: Any) -> torch.Tensor:
    import numpy as np

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def gap(call: Sampled, got: Any, wanted: Any) -> str:
    """What differs; nothing when they agree. Half precision may agree with eager in f32 instead: torch rounds between its steps."""
    mine = [x for x in pytree.tree_leaves(got) if isinstance(x, torch.Tensor)]
    theirs = [x for x in pytree.tree_leaves(wanted) if isinstance(x, torch.Tensor)]
    if len(mine) != len(theirs):
        return f"{len(mine)} tensors, eager has {len(theirs)}"
    wide: list[Any] | None = None
    for n, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{a.dtype}{list(a.shape)}, eager has {b.dtype}{list(b.shape)}"
        why = _apart(a, b)
        if why and b.dtype in TOLERANCES:
            wide = _widened(call) if wide is None else wide
            if n < len(wide) and wide[n].shape == a.shape and not _apart(a, wide[n].to(a.dtype)):
                continue
        if why:
            return why
    return ""


def _apart(a: torch.Tensor, b: torch.Tensor) -> str:
    rtol, atol = TOLERANCES.get(b.dtype, (1e-4, 1e-5))
    try:
        torch.testing.assert_close(a, b.resolve_conj().resolve_neg(), rtol=rtol, atol=atol, equal_nan=True)
    except AssertionError as error:
        return " ".join(str(error).split())[:160]
    return ""


def _widened(call: Sampled) -> list[torch.Tensor]:
    """Eager in f32."""
    def wider(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return x.float() if x.dtype in TOLERANCES else x.clone()
        return torch.float32 if x in TOLERANCES else x

    try:
        args, kwargs = pytree.tree_map(wider, call.arguments)
        return [x for x in pytree.tree_leaves(call.op(*args, **kwargs)) if isinstance(x, torch.Tensor)]
    except (RuntimeError, TypeError, ValueError):
        return []


def shown(call: Sampled) -> str:
    def short(x: Any) -> Any:
        return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}" if isinstance(x, torch.Tensor) else x

    return str(pytree.tree_map(short, call.arguments))[:200]


def run(info: Any, dtype: torch.dtype, native: bool = False, most: int = MOST) -> Outcome:
    """All samples of an op in one dtype."""
    outcome = Outcome(full_name(info), str(dtype).removeprefix("torch."))
    calls = samples(info, dtype, most)
    if not calls:
        return outcome
    try:
        outcome.agree, outcome.differ = compared(calls, native)
    except Exception:
        for call in calls:
            _one(outcome, call, native)
    return outcome


def _one(outcome: Outcome, call: Sampled, native: bool) -> None:
    try:
        good, bad = compared([call], native)
        outcome.agree += good
        outcome.differ += bad
    except CompilerError as error:
        first = error.diagnostics[0]
        if first.code in (Code.TORCH_OP, Code.TORCH_DATA_DEPENDENT, Code.TORCH_MUTATION, Code.TORCH_RESULT):
            why = " ".join(first.message.split())[:140]
            outcome.refused[first.code.id] = outcome.refused.get(first.code.id, 0) + 1
            outcome.why = outcome.why or why
        else:
            outcome.broken.append(f"{shown(call)}: {' '.join(str(error).split())[:300]}")
    except Exception as error:
        outcome.broken.append(f"{shown(call)}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def full_name(info: Any) -> str:
    return f"{info.name}.{info.variant_test_name}" if info.variant_test_name else str(info.name)


def infos() -> list[Any]:
    """The ops whose samples say something."""
    return [i for i in op_db if i.name not in LEFT_OUT and not i.name.startswith(("_ops", "sparse", "torch.ops.aten._", "jiterator"))]


def chosen(info: Any) -> list[torch.dtype]:
    return [d for d in DTYPES if d in info.supported_dtypes("cpu")]


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ops", nargs="*")
    parser.add_argument("--dtype", action="append")
    parser.add_argument("--native", action="store_true", help="by native code, not by the interpreter")
    parser.add_argument("--most", type=int, default=MOST, help="samples of an op and dtype")
    parser.add_argument("--first", type=int, default=0, help="leave out so many ops")
    given = parser.parse_args(args)
    dtypes = [getattr(torch, d) for d in given.dtype or ()] or list(DTYPES)
    totals = {"agree": 0, "refused": 0, "wrong": 0, "ops": 0}
    for info in infos()[given.first :]:
        if given.ops and full_name(info) not in given.ops and info.name not in given.ops:
            continue
        for dtype in dtypes:
            if dtype not in chosen(info):
                continue
            outcome = run(info, dtype, given.native, given.most)
            totals["ops"] += 1
            totals["agree"] += outcome.agree
            totals["refused"] += sum(outcome.refused.values())
            totals["wrong"] += len(outcome.differ) + len(outcome.broken)
            print(json.dumps(outcome.row()), flush=True)
    print(json.dumps(totals), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
