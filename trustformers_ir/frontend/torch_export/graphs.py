"""Graphs that ``torch.compile`` hands to its backends, as modules of our graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trustformers_ir.frontend.torch_export.importer import Importer
from trustformers_ir.frontend.torch_export.problems import Problems
from trustformers_ir.frontend.torch_export.sites import NOWHERE
from trustformers_ir.frontend.torch_export.sizes import Sizes, fact_of
from trustformers_ir.frontend.torch_export.weights import Weights
from trustformers_ir.ir.core import Block, Function, Module
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.dims import SymExpr
from trustformers_ir.ir.ops.region import Return
from trustformers_ir.ir.ops.shape import Reshape
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.tracing import Trace, tracing


class Graph:
    """One graph as a module, and how its arguments and results are those of torch's function.

    ``inputs`` are the positions of the arguments that the module takes: all tensors but those that are weights. ``results`` says of each result
    which output it is, or (as a tuple of one) the constant that it always is.
    """

    def __init__(self, graph_module: Any, stored: Sequence[Any]) -> None:
        """``stored``: for each argument the tensor that it always is, or None."""
        import torch

        self.module = Module("graph")
        block = Block()
        trace = Trace(self.module, block)
        problems = Problems()
        self.inputs: list[int] = []
        self.results: list[int | tuple[Any]] = []
        with tracing(trace):
            sizes = Sizes()
            importer = _Importer(trace, sizes, problems, Weights(trace))
            nodes = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
            _declare(importer, nodes)
            given: list[Any] = []
            for position, node in enumerate(nodes):
                fake = node.meta.get("val")
                if isinstance(fake, torch.Tensor):
                    if stored[position] is not None:
                        given.append(importer.stored(node.name, stored[position]))
                        continue
                    type = importer.type_of(fake)
                    assert type is not None
                    self.inputs.append(position)
                    given.append(Tensor(trace, block.add_arg(type, node.name)))
                elif isinstance(fake, torch.SymInt):
                    given.append(sizes.dim(fake))
                else:
                    given.append(fake)
            outputs = importer.run(graph_module, given)
            trace.site = None
            values = self._values(trace, outputs, problems)
            problems.check()
            trace.builder.create(Return(), *values)
        self.module.add_function(Function("main", block))

    def _values(self, trace: Trace, outputs: Any, problems: Problems) -> list[Any]:
        values: list[Any] = []
        for value in outputs:
            if isinstance(value, Tensor):
                found = value.value
                if found.producer is None or found.name or found in values:
                    found = trace.builder(Reshape(found.type.shape), found)
                found.name = f"output_{len(values)}"
                self.results.append(len(values))
                values.append(found)
            elif isinstance(value, SymExpr):
                problems.add(Code.TORCH_RESULT, "a size is a result of the graph", NOWHERE, "compute with x.shape outside of what is compiled")
            else:
                self.results.append((value,))
        return values

    def __bool__(self) -> bool:
        """Whether there is anything to compute."""
        return any(isinstance(r, int) for r in self.results)


class _Importer(Importer):
    def __init__(self, trace: Trace, sizes: Sizes, problems: Problems, weights: Weights) -> None:
        super().__init__(trace, sizes, problems)
        self.weights = weights

    def stored(self, name: str, tensor: Any) -> Tensor:
        return self.weights.value(name, tensor)


def _declare(importer: _Importer, nodes: Sequence[Any]) -> None:
    """The symbols of the arguments. torch checks before each call that their sizes are what it looked at, so that its lower bound of 2 holds."""
    import torch

    facts = importer.trace.module.facts
    for node in nodes:
        fake = node.meta.get("val")
        sizes = fake.shape if isinstance(fake, torch.Tensor) else (fake,)
        for size in sizes:
            if isinstance(size, torch.SymInt):
                for symbol in sorted(size.node.expr.free_symbols, key=str):
                    known = size.node.shape_env.var_to_range.get(symbol)
                    name = str(symbol)
                    if name not in facts.symbols:
                        facts.declare(name, fact_of(None, None, 2) if known is None else fact_of(known.lower, known.upper, 2))



