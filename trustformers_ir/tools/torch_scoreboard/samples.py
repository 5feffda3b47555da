"""The samples that torch tests its own ops with (``op_db``): every entry, at each of our dtypes that torch supports on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

DTYPES = ("float32", "float16", "bfloat16", "int64", "bool")


@dataclass(frozen=True)
class Sample:
    """One call: the op and its arguments. The tensors among them are what a program of it takes."""

    unit: tuple[str, str]  # op and dtype
    number: int  # among the samples of both
    op: Any
    arguments: Any

    def tensors(self) -> list[Any]:
        import torch
        import torch.utils._pytree as pytree

        return [x for x in pytree.tree_leaves(self.arguments) if isinstance(x, torch.Tensor)]

    def call(self, tensors: Iterator[Any]) -> Any:
        """What the op gives for other tensors in the places of its own."""
        import torch
        import torch.utils._pytree as pytree

        args, kwargs = pytree.tree_map(lambda x: next(tensors) if isinstance(x, torch.Tensor) else x, self.arguments)
        return self.op(*args, **kwargs)

    def shown(self) -> str:
        """The call in words: its number, the types of its tensors, its other arguments."""
        import torch
        import torch.utils._pytree as pytree

        def short(x: Any) -> Any:
            return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}" if isinstance(x, torch.Tensor) else x

        return f"sample {self.number} {pytree.tree_map(short, self.arguments)}"[:240]


@dataclass(frozen=True)
class Unit:
    """One entry of ``op_db`` at one dtype."""

    info: Any
    dtype: str

    @property
    def op(self) -> str:
        return f"{self.info.name}.{self.info.variant_test_name}" if self.info.variant_test_name else str(self.info.name)

    def samples(self, most: int = 0) -> list[Sample]:
        """At most ``most`` samples, taken evenly; 0: all. They are the same in every run."""
        import torch

        torch.manual_seed(0)
        found: list[Sample] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for s in self.info.sample_inputs("cpu", getattr(torch, self.dtype), requires_grad=False):
                found.append(Sample((self.op, self.dtype), len(found), self.info.op, ([s.input, *s.args], dict(s.kwargs))))
        if 0 < most < len(found):
            step = len(found) / most
            found = [found[int(i * step)] for i in range(most)]
        return found


def units(dtypes: Sequence[str] = (), ops: Sequence[str] = ()) -> list[Unit]:
    """What the samples of the dtypes and the ops are of (of all where none is given), in torch's order."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db

    found = [Unit(i, d) for i in op_db for d in DTYPES if getattr(torch, d) in i.supported_dtypes("cpu") and (not dtypes or d in dtypes)]
    return [u for u in found if not ops or u.op in ops or u.info.name in ops]
