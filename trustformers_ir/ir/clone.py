"""A copy of a module that can be changed without touching the original. Weights are shared: they never change."""

from __future__ import annotations

from trustformers_ir.ir.core import Block, Function, Module, Operation, Value


def clone_module(module: Module) -> Module:
    """The same functions, operations, names and locations, made of new values."""
    copy = Module(module.name, module.facts.copy(), dict(module.weights), {}, dict(module.metadata), module.calling)
    for name, function in module.functions.items():
        copy.functions[name] = Function(function.name, _block(function.body, {}), function.states)
    return copy


def _block(block: Block, values: dict[Value, Value]) -> Block:
    out = Block([a.type for a in block.args], [a.name for a in block.args])
    values.update(zip(block.args, out.args, strict=True))
    for o in block:
        operands = [None if v is None else values[v] for v in o.operands]
        body = None if o.body is None else _block(o.body, values)
        new = out.append(Operation(o.op, operands, [r.type for r in o.results], o.loc, body))
        for old, result in zip(o.results, new.results, strict=True):
            result.name = old.name
            values[old] = result
    return out
