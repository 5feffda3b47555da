"""What the scripts measure: a piece of work, what must be reached with it, and where it is done."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dims import evaluate
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.probes import draw_inputs
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.tools.bench.bars import Bar, Figure

COPY, MATRIX = "copy", "matrix"  # limits of a machine
OURS = "ours"
Call = Callable[[], Any]


@dataclass(frozen=True)
class Goal:
    """A bar, and what its figure is: the share of a limit of the machine, or (no limit) how many times as fast as the fastest peer we are."""

    bar: Bar
    limit: str = ""


def faster(times: float, against: str) -> Goal:
    """So many times as fast as the fastest peer."""
    return Goal(Bar(against, times))


def share(part: float, limit: str) -> Goal:
    """That part of a limit of the machine."""
    return Goal(Bar({COPY: "of the copy bandwidth", MATRIX: "of the matrix rate"}[limit], part, unit="%"), limit)


@dataclass(frozen=True)
class Place:
    """Where work is done: on the GPU that torch has; or, ``small``, on Triton's interpreter, with torch on the CPU and not compiled.

    ``rates``: by limit, the bytes (read and written) and operations per second that the machine reached in the same run.
    """

    small: bool
    rates: Mapping[str, float]

    @property
    def target(self) -> str:
        return "triton:interpreter" if self.small else "cuda"

    def tensor(self, array: np.ndarray) -> Any:
        """The array as a tensor of torch."""
        import torch

        raw = np.ascontiguousarray(array)
        made = torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16) if raw.dtype == DType.bf16.numpy else torch.from_numpy(raw)
        return made if self.small else made.cuda()

    def compiled(self, function: Callable[..., Any], graphs: bool = True) -> Callable[..., Any]:
        """The function (or module) as torch.compile makes it at its best: tuned, and with ``graphs`` a call is one CUDA graph, which copies what it
        is given, but no parameters and buffers of modules."""
        import torch

        mode = "max-autotune" if graphs else "max-autotune-no-cudagraphs"
        return function if self.small else torch.compile(function, mode=mode, dynamic=False)


@dataclass(frozen=True)
class Work(abc.ABC):
    """One piece of work; ``str`` of it is its name. Its peers compute the same of the same tensors and weights."""

    #: how far results may be from those of the reference, in units of the largest of its numbers
    bound: ClassVar[float] = 2.0**-7
    #: a call finds its inputs in memory, not where the call before has left them in a cache; what is larger than any cache need not ask for that
    cold: ClassVar[bool] = True

    @property
    def quantize(self) -> str | None:
        """How weights are quantized; peers compute with them as they were."""
        return None

    @property
    @abc.abstractmethod
    def dims(self) -> Mapping[str, int]:
        """The sizes that the graph leaves open."""

    @property
    @abc.abstractmethod
    def goals(self) -> Sequence[Goal]:
        """What must be reached."""

    @property
    def flops(self) -> float:
        """Additions and multiplications of its products, where a goal is about them."""
        return 0.0

    @abc.abstractmethod
    def module(self) -> Module:
        """The graph. Sizes that a model knows only at a call are symbols in it."""

    def peers(self, place: Place, tensors: Sequence[Any]) -> Mapping[str, Call]:
        """Others that do the same with the arguments of the graph, by name; ``ImportError`` where their package is missing."""
        return {}

    def unread(self, module: Module) -> int:
        """Bytes of weights that no call reads."""
        return 0

    def drawn(self, module: Module) -> list[np.ndarray]:
        """Arguments of the graph."""
        return list(draw_inputs(module, self.dims, np.random.default_rng(0)).values())

    def traffic(self, exe: Runnable, module: Module) -> int:
        """The bytes that a call must move at least: inputs, states and weights are read once, results written once."""
        main = module.main
        types = [v.type for v in (*main.args, *main.outputs[: len(main.outputs) - main.states])]
        return sum(evaluate(t.bytes, self.dims) for t in types) + sum(w.bytes for w in exe.manifest.weights) - self.unread(module)

    def figures(self, seconds: Mapping[str, float], moved: int, rates: Mapping[str, float], note: str = "") -> list[Figure]:
        """The figure of each goal, of seconds by contestant and the bytes that had to be moved."""
        ours = seconds[OURS]
        peer = min((n for n in seconds if n != OURS), key=seconds.__getitem__, default="")
        shares = {COPY: moved / ours / rates[COPY], MATRIX: self.flops / ours / rates[MATRIX]}
        shown = Figure(math.nan, _time(ours), f"{_time(seconds[peer])} {peer}" if peer else "", max(shares.values()), note)
        ratio = seconds[peer] / ours if peer else math.nan
        return [replace(shown, value=shares[g.limit] if g.limit else ratio) for g in self.goals]


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"
