"""What one call did, kernel by kernel and worker by worker: from cycle counts to a table and to a trace for a viewer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir.abi import Entry, KernelInfo
from trustformers_ir.ir.dims import evaluate


@dataclass(frozen=True)
class Row:
    """One kernel call: seconds that the slowest worker computed and that all workers together waited, and the work done."""

    kernel: KernelInfo
    seconds: float
    waited: float
    flops: int
    bytes: int


@dataclass(frozen=True)
class Profile:
    """One call of an entry. ``times`` is ``f64[shares, kernels, 3]``: seconds from the start at which a worker arrived at its share of a kernel,
    began, ended; ``workers`` is ``i64[shares, kernels]``: which worker that was. (A worker that comes late finds its shares done by others.)"""

    entry: Entry
    times: np.ndarray
    workers: np.ndarray
    seconds: float
    dims: Mapping[str, int]

    @classmethod
    def of(cls, entry: Entry, stamps: np.ndarray, elapsed_ns: int, dims: Mapping[str, int]) -> Profile:
        """From ``i64[shares, kernels, 4]``, cycle counts as in the ABI. The whole call, as the clock saw it, gives the length of a cycle. Counters of
        the CPUs of a virtual machine may be a microsecond apart: a share that goes on with another CPU does not go back in time."""
        cycles_at = np.maximum.accumulate(stamps[..., :3].reshape(len(stamps), 3 * stamps.shape[1]), axis=1).reshape(*stamps.shape[:2], 3)
        counts = (cycles_at - cycles_at.min() if stamps.size else cycles_at).astype(np.float64)
        seconds = elapsed_ns * 1e-9
        cycles = counts.max(initial=0.0)
        return cls(entry, counts * (seconds / cycles if cycles else 0.0), stamps[..., 3], seconds, dims)

    @property
    def rows(self) -> list[Row]:
        """One row per kernel call, in order."""
        out = []
        for i, kernel in enumerate(self.entry.kernels):
            arrived, began, ended = self.times[:, i].T
            flops, size = evaluate(kernel.flops, self.dims), evaluate(kernel.bytes, self.dims)
            spent = np.bincount(self.workers[:, i], ended - began)
            out.append(Row(kernel, float(spent.max()), float((began - arrived).sum()), flops, size))
        return out

    def trace(self) -> dict[str, object]:
        """The trace in the format of ``chrome://tracing`` and Perfetto (Trace Event Format): a thread per worker, microseconds."""
        events: list[dict[str, object]] = []
        rows = self.rows
        for worker in range(self.times.shape[0]):
            events.append({"name": "thread_name", "ph": "M", "pid": 0, "tid": worker, "args": {"name": f"worker {worker}"}})
        for share, (times, workers) in enumerate(zip(self.times, self.workers.tolist(), strict=True)):
            for row, (arrived, began, ended), worker in zip(rows, times, workers, strict=True):
                if began > arrived:
                    events.append({"name": "wait", "ph": "X", "pid": 0, "tid": worker, "ts": arrived * 1e6, "dur": (began - arrived) * 1e6})
                about = {"symbol": row.kernel.symbol, "source": row.kernel.location, "flops": row.flops, "bytes": row.bytes, "share": share}
                event = {"name": row.kernel.label, "ph": "X", "pid": 0, "tid": worker, "ts": began * 1e6, "dur": (ended - began) * 1e6, "args": about}
                events.append(event)
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"entry": self.entry.name, "dims": dict(self.dims)}}

    def __str__(self) -> str:
        """Kernels of one label together, the dearest first."""
        groups: dict[str, list[Row]] = {}
        rows = self.rows
        for row in rows:
            groups.setdefault(row.kernel.label, []).append(row)
        lines = [f"{'ms':>9} {'calls':>6} {'wait ms':>8} {'GFLOP/s':>8} {'GB/s':>7}  kernel"]
        for label, same in sorted(groups.items(), key=lambda item: -sum(r.seconds for r in item[1])):
            seconds, waited = sum(r.seconds for r in same), sum(r.waited for r in same)
            rate, traffic = (sum(getattr(r, what) for r in same) / seconds / 1e9 if seconds else 0.0 for what in ("flops", "bytes"))
            lines.append(f"{seconds * 1e3:9.3f} {len(same):6} {waited * 1e3:8.3f} {rate:8.1f} {traffic:7.1f}  {label}")
        computed = sum(r.seconds for r in rows)
        lines.append(f"{self.seconds * 1e3:9.3f}        the whole call, {computed * 1e3:.3f} in kernels")
        return "\n".join(lines)
