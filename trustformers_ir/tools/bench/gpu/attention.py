"""Attention beside the backends of torch's scaled_dot_product_attention, in bf16, in turn and in one process::

    python -m trustformers_ir.tools.bench.gpu.attention                # on a GPU: ms, TFLOP/s, times the best of torch, share of the matrix rate
    python -m trustformers_ir.tools.bench.gpu.attention --small        # anywhere: small sizes on Triton's interpreter, against the reference

The matrix rate is that of torch's product of 8192 x 8192 in the same run. Of causal attention the half that is computed counts. What a call costs on
the CPU is in the time where the GPU waits for it. Nothing was measured with this yet: no GPU was there.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor

ROUNDS = 20
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")


@dataclass(frozen=True)
class Work:
    """One attention: batch, heads of queries and of keys, queries, keys, features."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    features: int
    causal: bool = False

    @property
    def flops(self) -> float:
        """Of both products, without what a causal mask hides."""
        pairs = self.queries * self.keys - (self.queries * (self.queries - 1) / 2 if self.causal else 0)
        return 4.0 * self.batch * self.heads * pairs * self.features

    def module(self, dtype: DType = DType.bf16) -> Module:
        """Sizes that a model knows only at a call are symbols: the number of queries is one, or it is the number of keys."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.attention(q, k, v, causal=self.causal)

        keys: Any = "keys"
        queries = 1 if self.queries == 1 else keys
        kv = dtype["batch", self.kv_heads, keys, self.features]
        return tfir.trace(attend, dtype["batch", self.heads, queries, self.features], kv, kv)

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        kv = (self.batch, self.kv_heads, self.keys, self.features)
        return (self.batch, self.heads, self.queries, self.features), kv, kv

    def __str__(self) -> str:
        kind = "decode" if self.queries == 1 else "causal" if self.causal else "plain"
        return f"{kind}, head {self.features}, {self.keys} keys, batch {self.batch}, {self.heads}/{self.kv_heads} heads"


def works(small: bool) -> Iterator[Work]:
    """The table of bars: 16k tokens in each row, head 64 and 128; and decoding as LLaMA-8B does."""
    if small:
        yield from (Work(1, 2, 1, 130, 130, 64, causal) for causal in (False, True))
        yield Work(1, 4, 2, 1, 600, 128)
        return
    for features in (64, 128):
        for causal in (False, True):
            for length in (1024, 2048, 4096, 8192, 16384):
                yield Work(16384 // length, 2048 // features, 2048 // features, length, length, features, causal)
    for keys in (1024, 4096, 16384, 65536):
        yield Work(1, 32, 8, 1, keys, 128)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="small sizes on Triton's interpreter, against the reference")
    if parser.parse_args().small:
        for work in works(small=True):
            print(f"{work}: off by {difference(work):.2g}")
    else:
        measure()


def difference(work: Work) -> float:
    """How far the kernel is from the reference at most, in f16."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float16) for shape in work.shapes()]
    got = tfir.compile(work.module(DType.f16), target="triton:interpreter")(*arrays)
    want = tfir.evaluate(work.module(DType.f16), *arrays)
    return float(np.abs(np.asarray(got, np.float32) - np.asarray(want, np.float32)).max())


def measure() -> None:
    """Prints a row for each work."""
    import torch

    square = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    rate = 2 * 8192.0**3 / timed({"torch": lambda: square @ square})["torch"]
    print(f"{torch.cuda.get_device_name()}: {rate / 1e12:.0f} TFLOP/s in bf16")
    for work in works(small=False):
        q, k, v = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for shape in work.shapes())
        exe = tfir.compile(work.module(), target="cuda")
        contestants: dict[str, Callable[[], Any]] = {"ours": functools.partial(exe, q, k, v)}
        for name in BACKENDS:
            run = torch_backend(name, work, q, k, v)
            if run is not None:
                contestants[name.removesuffix("_ATTENTION").lower()] = run
        seconds = timed(contestants)
        ours, best = seconds.pop("ours"), min(seconds, key=seconds.__getitem__)
        speed = work.flops / ours
        share = f"{speed / 1e12:6.1f} TFLOP/s {speed / rate:4.0%}"
        if work.queries == 1:  # k and v are read, 2 bytes each
            share = f"{2 * 2 * work.batch * work.kv_heads * work.keys * work.features / ours / 1e12:.2f} TB/s"
        print(f"{work}: {ours * 1e3:.3f} ms, {share}, {seconds[best] / ours:.2f}x torch ({best})", flush=True)


def torch_backend(name: str, work: Work, q: Any, k: Any, v: Any) -> Callable[[], Any] | None:
    """A call of that backend; None where it refuses the work."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def run() -> Any:
        with sdpa_kernel(getattr(SDPBackend, name)):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=work.causal, enable_gqa=work.heads != work.kv_heads)

    try:
        run()
    except RuntimeError:
        return None
    return run


def timed(contestants: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each, measured by events of the GPU, in turn."""
    import torch

    found: dict[str, list[float]] = {name: [] for name in contestants}
    for n in range(ROUNDS + 3):
        for name, run in contestants.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            if n >= 3:
                found[name].append(begin.elapsed_time(end) / 1e3)
    return {name: statistics.median(times) for name, times in found.items()}


if __name__ == "__main__":
    main()
