"""``torch.compile(model, backend="tfir")``: graphs that torch captures from Python, compiled for this CPU.

torch finds :func:`tfir` by the entry point ``torch_dynamo_backends``. Compiled code is for inference: a graph to be differentiated is refused.
Parameters and buffers become weights when a graph is first called; where somebody has written into one since, the graph is compiled again, which
a warning says. ``dynamic=True`` makes one compilation serve every size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from trustformers_ir.compiler import Request, compile_model
from trustformers_ir.frontend.torch_export.decompositions import decompositions
from trustformers_ir.frontend.torch_export.graphs import Graph
from trustformers_ir.frontend.torch_export.read import TorchNote
from trustformers_ir.ir.diagnostics import Code, CompilerError

OPTIONS = ("threads", "target", "quantize")


def tfir(graph_module: Any, example_inputs: Sequence[Any], *, mode: str | None = None, options: dict[str, Any] | None = None) -> Callable[..., Any]:
    """The backend. ``options`` are ``threads``, ``target`` and ``quantize`` of :func:`trustformers_ir.compile`. Raises ``CompilerError``."""
    import torch
    from torch._dynamo.backends.common import aot_autograd

    chosen = dict(options or {})
    unknown = sorted(set(chosen) - set(OPTIONS))
    if unknown or mode not in (None, "default"):
        what = f"the option '{unknown[0]}'" if unknown else f"the mode {mode!r}"
        raise CompilerError.of(Code.USAGE, f"the backend 'tfir' has not {what}", help=f"its options are {', '.join(OPTIONS)}")
    if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in example_inputs):
        message = "the graph is to be differentiated: gradients are enabled, and parameters ask for them"
        help = "call the model under torch.no_grad() or torch.inference_mode(); training is not compiled"
        raise CompilerError.of(Code.TORCH_TRAINING, message, help=help)
    fixed = _stored(graph_module, example_inputs)

    def compiled(graph: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        count = sum(n.op == "placeholder" for n in graph.graph.nodes)
        return _Graph(graph, fixed if len(fixed) == count else [False] * count, chosen)

    return aot_autograd(fw_compiler=compiled, inference_compiler=compiled, decompositions=decompositions())(graph_module, example_inputs)  # type: ignore[no-any-return]


def _stored(graph_module: Any, example_inputs: Sequence[Any]) -> list[bool]:
    """Which arguments are parameters and buffers of the model."""
    import torch

    nodes = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    found = [bool(n.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")) for n in nodes]
    return [a or isinstance(x, torch.nn.Parameter) for a, x in zip(found, example_inputs, strict=True)]


class _Graph:
    """A graph that is compiled when it is first called, with the weights that it is called with."""

    def __init__(self, graph: Any, stored: Sequence[bool], options: dict[str, Any]) -> None:
        self.graph = graph
        self.stored = list(stored)
        self.options = options
        self.seen: list[tuple[int, int]] = []
        self.made: Any = None
        self.read: Graph | None = None

    def __call__(self, *args: Any) -> Any:
        import torch

        now = [(id(a), a._version) for a, kept in zip(args, self.stored, strict=True) if kept and not a.is_inference()]
        if self.read is None or now != self.seen:
            if self.read is not None:
                warnings.warn("a parameter has changed since the graph was compiled: it is compiled again", TorchNote, stacklevel=2)
            self._compile(args)
            self.seen = now
        assert self.read is not None
        outputs: Any = ()
        if self.made is not None:
            with torch.no_grad():
                outputs = self.made(*(args[i] for i in self.read.inputs))
        if not isinstance(outputs, tuple):
            outputs = (outputs,)
        return [outputs[r] if isinstance(r, int) else r[0] for r in self.read.results]

    def _compile(self, args: Sequence[Any]) -> None:
        self.read = Graph(self.graph, [a if kept else None for a, kept in zip(args, self.stored, strict=True)])
        if not self.read:
            self.made = None
            return
        options = dict(self.options)
        threads = options.pop("threads", None)
        request = Request.of(options.get("target", "cpu"), None, None, None, options.get("quantize"))
        self.made = compile_model(self.read.module, None, request, threads)
