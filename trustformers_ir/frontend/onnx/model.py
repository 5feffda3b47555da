"""``load_onnx_model(path)``: the module of an ONNX model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trustformers_ir.frontend.onnx.convert import Reader
from trustformers_ir.frontend.onnx.reader import load_onnx
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, CompilerError


def load_onnx_model(model: Any, examples: Mapping[str, Any] | Sequence[Any] | None = None, dynamic: Sequence[str] | None = None) -> Module:
    """The module whose ``main`` computes what the model does.

    ``model`` is a path or an ``onnx.ModelProto``. ``examples`` are inputs by name or in order: what decides over shapes or structure takes its value
    from them, and is fixed; with ``dynamic`` the dims that it does not name have the sizes of the examples. Sequences are lists, of which every
    tensor becomes an input of its own; an optional input that is not there is None. Raises ``CompilerError`` with all problems of the model.
    """
    file = load_onnx(model)
    if examples is None:
        named: dict[str, Any] = {}
    elif isinstance(examples, Mapping):
        named = dict(examples)
        known = {i.name for i in file.proto.graph.input}
        for name in named:
            if name not in known:
                names = ", ".join(sorted(known)[:20]) or "none"
                raise CompilerError.of(Code.INPUT_NAME, f"the model has no input '{name[:200]}'", help=f"its inputs are {names}")
    else:
        made = {t.name for t in file.proto.graph.initializer}
        names_ = [i.name for i in file.proto.graph.input if i.name not in made]
        if len(examples) > len(names_):
            raise CompilerError.of(Code.INPUT_COUNT, f"{len(examples)} example inputs, and the model takes {len(names_)}")
        named = dict(zip(names_, examples, strict=False))
    return Reader(file, named, dynamic).run()
