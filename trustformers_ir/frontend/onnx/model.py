"""``load_onnx_model(path)``: the module of an ONNX model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trustformers_ir.frontend.onnx.convert import Reader
from trustformers_ir.frontend.onnx.reader import OnnxFile, load_onnx, not_text
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, CompilerError


def load_onnx_model(model: Any, examples: Mapping[str, Any] | Sequence[Any] | None = None, dynamic: Sequence[str] | None = None) -> Module:
    """The module whose ``main`` computes what the model does.

    ``model`` is a path or an ``onnx.ModelProto``. ``examples`` are inputs by name or in order: what decides over shapes or structure takes its value
    from them, and is fixed; with ``dynamic`` the dims that it does not name have the sizes of the examples. Sequences are lists, of which every
    tensor becomes an input of its own; an optional input that is not there is None. Raises ``CompilerError`` with all problems of the model.
    """
    file = load_onnx(model)
    try:
        return Reader(file, _named(file, examples), dynamic).run()
    except CompilerError:
        raise
    except RecursionError:
        raise file.fail("graphs or types are nested too deeply", code=Code.ONNX_UNSUPPORTED) from None
    except MemoryError:
        raise CompilerError.of(Code.OUT_OF_MEMORY, f"there is not enough memory to read {file.name}", help="read it where there is more") from None
    except Exception:
        strange = not_text(file.proto)
        if strange is None:
            raise
        raise file.fail(f"the file has a {strange} that is no UTF-8 text") from None


def _named(file: OnnxFile, examples: Mapping[str, Any] | Sequence[Any] | None) -> dict[str, Any]:
    """The examples by the names of inputs."""
    if examples is None:
        return {}
    graph = file.proto.graph
    if isinstance(examples, Mapping):
        known = {i.name for i in graph.input}
        unknown = next((name for name in examples if name not in known), None)
        if unknown is not None:
            help = f"its inputs are {', '.join(list(known)[:20]) or 'none'}"
            raise CompilerError.of(Code.INPUT_NAME, f"the model has no input '{unknown[:200]}'", help=help)
        return dict(examples)
    made = {t.name for t in graph.initializer}
    names = [i.name for i in graph.input if i.name not in made]
    if len(examples) > len(names):
        raise CompilerError.of(Code.INPUT_COUNT, f"{len(examples)} example inputs, and the model takes {len(names)}")
    return dict(zip(names, examples, strict=False))
