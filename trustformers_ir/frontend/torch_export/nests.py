"""What a module takes and gives, from torch's pytrees."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from trustformers_ir.ir.calling import Nest

_NAME = re.compile(r"[^A-Za-z0-9_]")


def nest_of(spec: Any, leaves: Iterator[Any]) -> Nest:
    """A pytree as a nest. ``leaves`` says of each leaf what it is: a nest, in order."""
    import torch.utils._pytree as pytree

    if spec.is_leaf():
        found = next(leaves)
        return found if isinstance(found, Nest) else Nest("constant", value=found)
    kind = spec.type
    if kind is None or kind is type(None):
        return Nest("constant", value=None)
    children = tuple(nest_of(child, leaves) for child in spec.children())
    if kind is tuple:
        return Nest("tuple", children)
    if kind is list:
        return Nest("list", children)
    keys = _keys(spec)
    if kind is dict:
        return Nest("dict", children, keys)
    node = pytree.SUPPORTED_NODES[kind]

    def apart(value: Any) -> Sequence[Any]:
        return list(node.flatten_fn(value)[0]) if isinstance(value, kind) else value

    return Nest("object", children, keys, None, f"{kind.__module__}.{kind.__qualname__}", apart, functools.partial(_together, node, spec.context))


def _together(node: Any, context: Any, parts: Sequence[Any]) -> Any:
    return node.unflatten_fn(list(parts), context)


def _keys(spec: Any) -> tuple[str, ...]:
    """The names of the children of a class, where it has such."""
    context = spec.context
    if isinstance(context, (list, tuple)) and len(context) == spec.num_children and all(isinstance(k, str) for k in context):
        return tuple(context)
    fields = getattr(spec.type, "_fields", None)
    return tuple(fields) if fields and len(fields) == spec.num_children else ()


def leaf_paths(spec: Any, path: str = "") -> Iterator[str]:
    """A name for each leaf: keys and positions on the way to it, with ``_`` between."""
    if spec.is_leaf():
        yield _NAME.sub("_", path.strip("_"))
        return
    if spec.type is None or spec.type is type(None):
        return
    keys = _keys(spec) or ([str(k) for k in spec.context] if spec.type is dict else None) or [str(i) for i in range(spec.num_children)]
    for key, child in zip(keys, spec.children(), strict=True):
        yield from leaf_paths(child, f"{path}_{key}")
