"""Example inputs of a module: what forward takes them as, and which of their axes change from call to call."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trustformers_ir.frontend.torch_export.nests import leaf_paths
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.types import TensorType

ROLES = ("batch", "seq")
CACHES = ("past_key_value", "cache", "key_value")  # in the names of inputs that hold keys and values: [batch, heads, length, features]


@dataclass(frozen=True)
class Axis:
    """An axis that is not one size: its name, and torch's ``Dim`` where the user gave one."""

    role: str
    dim: Any = None


@dataclass(frozen=True)
class Examples:
    """Arguments of forward as they are exported, and the axes of each tensor in them that change, leaf by leaf."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]  # of the parameters that args and kwargs go to, in order
    paths: tuple[str, ...]  # a name for each leaf
    axes: tuple[Mapping[int, Axis], ...]

    @property
    def leaves(self) -> list[Any]:
        import torch.utils._pytree as pytree

        found: list[Any] = pytree.tree_leaves((self.args, self.kwargs))
        return found

    def shapes(self, model: Any, args: Any, kwargs: Any) -> Any:
        """What ``torch.export`` takes as ``dynamic_shapes``; the arguments are these, or their leaves."""
        import torch
        import torch.utils._pytree as pytree

        found = torch.export.ShapesCollection()
        for leaf, axes in zip(pytree.tree_leaves((args, kwargs)), self.axes, strict=True):
            if isinstance(leaf, torch.Tensor) and axes:
                found[leaf] = {a: axis.dim or torch.export.Dim.AUTO for a, axis in axes.items()}
        return found.dynamic_shapes(model, args, kwargs)

    @property
    def plain(self) -> bool:
        """Whether the arguments are tensors and numbers in tuples, lists and dicts, and no classes of somebody else's."""
        import torch.utils._pytree as pytree

        def is_plain(spec: Any) -> bool:
            return spec.is_leaf() or (spec.type in (tuple, list, dict, type(None)) and all(map(is_plain, spec.children())))

        return is_plain(pytree.tree_flatten((self.args, self.kwargs))[1])

    def grown(self, roles: Sequence[str]) -> Examples:
        """With two of everything along dynamic axes of size 1: torch takes a 1 for a size that never changes."""
        import torch
        import torch.utils._pytree as pytree

        def larger(leaf: Any, axes: Mapping[int, Axis]) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            counts = [2 if a in axes and axes[a].role in roles and leaf.shape[a] == 1 else 1 for a in range(leaf.ndim)]
            return leaf.repeat(*counts) if any(n > 1 for n in counts) else leaf

        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        args, kwargs = pytree.tree_unflatten([larger(x, a) for x, a in zip(leaves, self.axes, strict=True)], spec)
        return replace(self, args=args, kwargs=kwargs)

    def fixed(self, roles: Sequence[str]) -> Examples:
        """With axes of these roles at the sizes of the example."""
        return replace(self, axes=tuple({n: a for n, a in axes.items() if a.role not in roles} for axes in self.axes))

    @property
    def single(self) -> bool:
        """Whether some dynamic axis has one element."""
        return any(x.shape[n] == 1 for x, axes in zip(self.leaves, self.axes, strict=True) for n in axes)


def examples_of(model: Any, given: Any, dynamic: Any) -> Examples:
    """The examples of a call, by what ``forward`` takes. ``CompilerError`` for those that do not fit."""
    import torch.utils._pytree as pytree

    signature = inspect.signature(model.forward)
    args, kwargs = _arguments(given)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        takes = ", ".join(signature.parameters)
        message = f"the example inputs do not fit {type(model).__name__}.forward: {error}"
        raise CompilerError.of(Code.TORCH_INPUTS, message, help=f"forward takes {takes or 'nothing'}") from None
    kinds = {p.kind for p in signature.parameters.values() if p.name in bound.arguments}
    if kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}:
        kwargs = {}
        for name, value in bound.arguments.items():
            if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                kwargs |= value
            else:
                kwargs[name] = value
        args, names = (), tuple(kwargs)
    else:
        names = (*(f"args_{i}" for i in range(len(args))), *kwargs)
    seen: set[int] = set()
    args, kwargs = pytree.tree_map(lambda x: _alone(_tensor(x), seen), (args, kwargs))
    leaves, spec = pytree.tree_flatten((args, kwargs))
    paths = tuple(path.removeprefix("0_").removeprefix("1_") for path in leaf_paths(spec))
    if len(paths) != len(leaves):
        paths = tuple(f"input_{i}" for i in range(len(leaves)))
    axes = _chosen(leaves, paths, dynamic)
    return Examples(tuple(args), dict(kwargs), names, paths, axes)


def _arguments(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if given is None:
        return (), {}
    if isinstance(given, Mapping) and all(isinstance(k, str) for k in given):
        return (), dict(given)
    return (tuple(given), {}) if isinstance(given, (tuple, list)) else ((given,), {})


def _alone(value: Any, seen: set[int]) -> Any:
    """A tensor that is given twice as two: their axes may be named apart."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach() if id(value) in seen else value
    seen.add(id(value))
    return value


def _tensor(value: Any) -> Any:
    """Arrays, and types of constant sizes, as tensors."""
    import torch

    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, TensorType):
        if not all(isinstance(d, int) for d in value.shape):
            message = f"the example {value} has sizes that are not numbers"
            raise CompilerError.of(Code.TORCH_INPUTS, message, help="give tensors of typical sizes; which axes change says dynamic=")
        name = {"bool": "bool", "bf16": "bfloat16"}.get(value.dtype.name) or value.dtype.numpy.name
        return torch.zeros(*value.shape, dtype=getattr(torch, name))
    return value


def _chosen(leaves: Sequence[Any], paths: Sequence[str], dynamic: Any) -> tuple[Mapping[int, Axis], ...]:
    """The axes that change. ``dynamic`` is None (batches and sequences), some of those roles, or the axes of each input by name."""
    import torch

    if isinstance(dynamic, Mapping):
        return tuple(_named(leaves, paths, dynamic))
    wanted = ROLES if dynamic is None else tuple(dynamic)
    for role in wanted:
        if role not in ROLES:
            help = 'name batch, seq, both or none; or give the axes: {"input_ids": {0: "batch", 1: "seq"}}'
            raise CompilerError.of(Code.TORCH_DYNAMIC, f"a torch module has no dim '{role}' before its axes are named", help=help)
    found: list[Mapping[int, Axis]] = []
    for leaf, path in zip(leaves, paths, strict=True):
        roles = _roles(leaf.ndim, path, leaf.is_floating_point()) if isinstance(leaf, torch.Tensor) else {}
        found.append({a: Axis(role) for a, role in roles.items() if role in wanted})
    return tuple(found)


def is_cache(path: str) -> bool:
    """Whether an input holds keys and values of tokens before, by its name."""
    return any(word in path for word in CACHES)


def _roles(rank: int, path: str, floating: bool) -> dict[int, str]:
    """Axis 0 is the batch. Sequences are axis 1 of ids, masks and waveforms; of features either may be, torch finds out which; of keys and values
    it is axis 2. Images have a fixed size."""
    if rank == 0:
        return {}
    if is_cache(path) and rank == 4:
        return {0: "batch", 2: "seq"}
    return {0: "batch"} | ({1: "seq"} if rank == 2 else {1: "seq", 2: "seq"} if rank == 3 else {})


def _named(leaves: Sequence[Any], paths: Sequence[str], dynamic: Mapping[str, Any]) -> Iterator[Mapping[int, Axis]]:
    import torch

    unknown = [name for name in dynamic if name not in paths]
    if unknown:
        message = f"dynamic names the input '{unknown[0]}', which is not there"
        raise CompilerError.of(Code.TORCH_DYNAMIC, message, Where(tensor=unknown[0]), f"the inputs are {', '.join(paths)}")
    for leaf, path in zip(leaves, paths, strict=True):
        chosen = dynamic.get(path) or {}
        chosen = chosen if isinstance(chosen, Mapping) else dict(enumerate(chosen))
        axes: dict[int, Axis] = {}
        for axis, dim in chosen.items():
            if not isinstance(leaf, torch.Tensor) or not isinstance(axis, int) or not -leaf.ndim <= axis < leaf.ndim:
                message = f"dynamic names axis {axis!r} of '{path}', which has no such axis"
                raise CompilerError.of(Code.TORCH_DYNAMIC, message, Where(tensor=path))
            if dim is not None:
                name = dim if isinstance(dim, str) else getattr(dim, "__name__", f"{path}_{axis}")
                axes[axis % leaf.ndim] = Axis(name, None if isinstance(dim, str) else dim)
        yield axes
