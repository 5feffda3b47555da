"""How the scripts measure: everybody does the same work in one process on one GPU, in turn, and medians count.

    python -m trustformers_ir.tools.bench.gpu                   # all scripts, on a machine with a GPU; `… .gpu.norms` is one of them
    python -m trustformers_ir.tools.bench.gpu --small           # anywhere: small sizes on Triton's interpreter, against the reference
    python -m trustformers_ir.tools.bench.gpu --json            # for programs

Times are those of the GPU, between two events around a call; what a call costs on the CPU is in them where the GPU waits for it. The limits are
measured in the same run: the rate of copies is that of torch's copy of 1 GiB, the matrix rate that of torch's product of 8192 x 8192 in bf16.

``--small`` shows that the scripts work: what we and the peers compute is compared with the reference semantics, and nothing is timed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import math
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.ir.core import Module
from trustformers_ir.tools import console
from trustformers_ir.tools.bench.bars import HEAD, WIDEST, Bar, Figure, Line, Verdict
from trustformers_ir.tools.bench.gpu.work import COPY, MATRIX, OURS, Call, Place, Work

WARM, ROUNDS = 3, 20
CACHE = 512 << 20  # bytes that push everything out of every cache
STREAM = 1 << 30
QUANTIZED = 0.5  # of the largest number: no more is changed by weights of 4 bits
SIDE = 8192
HEAD_SMALL = ("work", "by", "off by", "bar", "")
WIDEST_SMALL = ("", "torch.compile", "0.00123", "≤ 0.00123", "missed")
Works = Callable[[bool], Iterable[Work]]


def run(*scripts: Works, options: Sequence[str] | None = None) -> None:
    """A script's command line; each of ``scripts`` gives its work, small or not."""
    parser = argparse.ArgumentParser(description="Measures us and our peers on a GPU.")
    parser.add_argument("--small", action="store_true", help="small sizes on Triton's interpreter, against the reference; nothing is timed")
    parser.add_argument("--json", action="store_true", help="the lines as JSON")
    chosen = parser.parse_args(options)
    place = Place(True, {}) if chosen.small else measured()
    about = machine(place)
    todo = [work for script in scripts for work in script(chosen.small)]
    lines: list[Line] = []
    widths = console.widths_of([HEAD_SMALL if chosen.small else HEAD, *([str(w), *(WIDEST_SMALL if chosen.small else WIDEST)[1:]] for w in todo)])
    if not chosen.json:
        print(about)
        console.print_row(HEAD_SMALL if chosen.small else HEAD, widths)
    for work in todo:
        for line in compared(work, place) if chosen.small else timed_lines(work, place):
            lines.append(line)
            if not chosen.json:
                shown = line.bar.show(line.figure.value)
                console.print_row((line.work, line.row, shown, line.bar.text, line.verdict.value) if chosen.small else line.cells, widths)
    if chosen.json:
        console.print_json({"machine": about, "rates": place.rates, "lines": [line.data for line in lines]})
    for line in lines:
        if line.figure.note:
            console.say(f"{line.work}: {line.figure.note}")
    if chosen.small and any(line.verdict is Verdict.MISSED for line in lines):
        raise SystemExit(1)


def measured() -> Place:
    """The GPU of torch with its limits. ``USAGE`` where there is none."""
    try:
        import torch
    except ImportError:
        raise console.usage("peers are timed by torch, which is not installed", "pip install torch, or --small") from None
    if not torch.cuda.is_available():
        raise console.usage("torch finds no GPU on this machine", "--small tries the scripts without one")
    square = torch.randn(SIDE, SIDE, dtype=torch.bfloat16, device="cuda")
    source = torch.zeros(STREAM, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = timed({COPY: lambda: target.copy_(source), MATRIX: lambda: square @ square})
    return Place(False, {COPY: 2 * STREAM / seconds[COPY], MATRIX: 2 * float(SIDE) ** 3 / seconds[MATRIX]})


def machine(place: Place) -> str:
    """A line about the machine and what measures."""
    triton = f"Triton {importlib.metadata.version('triton')}"  # importing it would decide whether it interprets
    if place.small:
        return f"{triton} interprets on {platform.machine()}: nothing is timed"
    import torch

    about = torch.cuda.get_device_properties(0)
    limits = f"copies {place.rates[COPY] / 1e12:.2f} TB/s, matrix rate {place.rates[MATRIX] / 1e12:.0f} TFLOP/s in bf16"
    made = f"torch {torch.__version__}, {triton}, trustformers_ir {tfir.__version__}"
    return f"{about.name}, {about.multi_processor_count} cores, {about.total_memory >> 30} GiB; {limits}; {made}"


def compared(work: Work, place: Place) -> Iterator[Line]:
    """How far from the reference results are: ours, and those of each peer."""
    module, arrays = drawn(work)
    exe = tfir.compile(work.module(), target=place.target, quantize=work.quantize)
    found: dict[str, Any] = {OURS: exe(*arrays)}
    plain = reference(module, arrays)
    wanted = {OURS: plain if work.quantize is None else reference(exe.module, arrays)}
    peers, note = peers_of(work, place, arrays)
    found |= {name: call() for name, call in peers.items()}
    for name, result in found.items():
        bar = Bar("from the reference", work.bound, unit="", at_most=True)
        yield Line(name, str(work), bar, Figure(distance(results(result), wanted.get(name, plain)), note=note))


def timed_lines(work: Work, place: Place) -> Iterator[Line]:
    """What was reached of each goal."""
    import torch

    torch._dynamo.reset()  # it gives up a function that was compiled for many sizes
    module, arrays = drawn(work)
    exe = tfir.compile(work.module(), target=place.target, quantize=work.quantize)
    exe.wait_for_checks = False  # type: ignore[attr-defined]
    tensors = [place.tensor(a) for a in arrays]
    peers, note = peers_of(work, place, arrays)
    ours = functools.partial(exe, *tensors)
    far = max((distance(results(ours()), results(call())) for call in peers.values()), default=0.0)
    seconds = timed({OURS: ours, **peers}, work.cold)
    exe.synchronize()  # type: ignore[attr-defined]
    if far > (work.bound if work.quantize is None else QUANTIZED):
        note = f"{note}; a peer is {far:.2g} of the largest number away".removeprefix("; ")
    for goal, figure in zip(work.goals, work.figures(seconds, work.traffic(exe, module), place.rates, note), strict=True):
        yield Line(OURS, str(work), goal.bar, figure)


def drawn(work: Work) -> tuple[Module, list[np.ndarray]]:
    """The graph and arguments for it."""
    module = work.module()
    return module, work.drawn(module)


def peers_of(work: Work, place: Place, arrays: Sequence[np.ndarray]) -> tuple[Mapping[str, Call], str]:
    """The peers, or why there are none."""
    try:
        return work.peers(place, [place.tensor(a) for a in arrays]), ""
    except ImportError as error:
        return {}, f"without peers: {error}"


def reference(module: Module, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the reference makes of them, without the next values of states: whoever is measured writes those in place."""
    found = results(tfir.evaluate(module, *arrays))
    return found[: len(found) - module.main.states]


def results(given: Any) -> list[np.ndarray]:
    """Results of anybody, in f32."""
    several = given if isinstance(given, (tuple, list)) else (given,)
    return [np.asarray(r if isinstance(r, np.ndarray) else r.detach().float().cpu().numpy(), np.float32) for r in several]


def distance(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """The largest difference, in units of the largest number of the result that it is in; infinite where there is NaN."""
    found = [float(np.abs(a - b).max(initial=0.0) / (np.abs(b).max(initial=0.0) or 1.0)) for a, b in zip(got, wanted, strict=True)]
    return max(math.inf if math.isnan(d) else d for d in found)


def timed(contestants: Mapping[str, Call], cold: bool = False) -> dict[str, float]:
    """Median seconds of each, by events of the GPU, in turn. ``cold``: the caches are filled with something else before each call."""
    import torch

    other = torch.empty(CACHE if cold else 0, dtype=torch.uint8, device="cuda")
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for n in range(WARM + ROUNDS):
        for name, call in contestants.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            other.zero_()
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            if n >= WARM:
                found[name].append(begin.elapsed_time(end) / 1e3)
    return {name: statistics.median(times) for name, times in found.items()}
