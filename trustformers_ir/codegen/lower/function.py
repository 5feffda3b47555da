"""From a function of fused regions to a program: who owns each buffer, which kernels run in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from trustformers_ir.codegen.kernel_ir.kernel import For, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL
from trustformers_ir.codegen.lower.blocks import BlockMachine
from trustformers_ir.codegen.lower.definer import Sites, unsupported
from trustformers_ir.codegen.lower.region import LoweredKernel, LoweringContext, lower_region
from trustformers_ir.codegen.lower.schedules import MachineShape
from trustformers_ir.codegen.program import BufferRef, KernelCall, Program, Storage, Temporary
from trustformers_ir.ir import ops
from trustformers_ir.ir.abi import Port
from trustformers_ir.ir.core import Block, Function, Module, Operation, Value, Weight
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.ops.nonzero import most
from trustformers_ir.ir.ops.region import RegionKind
from trustformers_ir.ir.schedule_table import Choice, ScheduleKey
from trustformers_ir.ir.schema import settled
from trustformers_ir.ir.types import TensorType
from trustformers_ir.passes.fuse import outline


def lower_function(
    module: Module,
    function: Function,
    machine: MachineShape | BlockMachine,
    names: tuple[str, ...] = (),
    sites: Sites | None = None,
    table: Mapping[ScheduleKey, Choice] | None = None,
) -> Program:
    """Lower every region of ``function``. Large literals become weights of the module. ``names`` are those of the outputs.

    ``table`` has schedules that are better than the heuristic's. ``sites`` collects the checked index sites, which are numbered through the
    whole module; ``Program.sites`` are all collected so far.
    """
    ctx = LoweringContext(module.facts, Sites() if sites is None else sites, machine, table or {})
    return _FunctionLowering(module, function, ctx).run(names)


class _FunctionLowering:
    def __init__(self, module: Module, function: Function, ctx: LoweringContext) -> None:
        self.module, self.function, self.ctx = module, function, ctx
        self.refs: dict[Value, BufferRef] = {}
        self.arena: list[BufferRef] = []
        self.calls: list[KernelCall] = []
        self.taken: set[int] = set()  # outputs that some operation writes directly
        self.computed: dict[str, Dim] = {}
        self.states: dict[Value, BufferRef] = {}  # what is made by writing into a state, and where that is

    def run(self, names: tuple[str, ...]) -> Program:
        function = self.function
        declared = [a.type for a in function.args]
        for value in _values(function):  # what is broadcast is decided by reading a 1
            value.type = settled(value.type, self.module.facts)
        for i, a in enumerate(function.args):
            self.refs[a] = BufferRef(Storage.INPUT, i, a.type)
        for operation in function.body.operations:
            if not isinstance(operation.op, (ops.Fused, ops.WeightOp)) and not operation.op.terminator:
                outline({operation}, RegionKind.LOOP)
        count = function.states
        if count:
            self.states = {new: self.refs[old] for old, new in function.next_states.items() if new is not old}
        outputs = function.outputs[: len(function.outputs) - count]
        for operation in function.body:
            if not operation.op.terminator:
                self.operation(operation, outputs)
        for i, value in enumerate(outputs):
            if i not in self.taken:
                self.copy(value, BufferRef(Storage.OUTPUT, i, value.type))
        inputs = tuple(Port(a.name or f"input{i}", type) for i, (a, type) in enumerate(zip(function.args, declared, strict=True)))
        ports = tuple(Port(names[i] if i < len(names) else (v.name or f"output{i}"), v.type) for i, v in enumerate(outputs))
        for port in ports:
            for size in port.type.shape:
                self.most(size)
        made = (tuple(self.arena), tuple(self.calls), tuple(self.ctx.sites.rows))
        return Program(function.name, inputs, _distinct(ports), *made, count, self.computed)

    def most(self, dim: Dim) -> Dim:
        """What a size is at most, whatever the program computes."""
        try:
            return most(dim, self.computed)
        except ValueError as error:
            raise CompilerError.of(Code.UNSUPPORTED_SHAPE, f"in '{self.function.name}': {error}", help="give the model's sizes constants") from None

    def defines(self, operation: Operation) -> None:
        """Notes the symbol that the operation computes."""
        op = operation.op
        assert isinstance(op, ops.NonZero)
        if isinstance(self.ctx.machine, BlockMachine):
            raise unsupported(operation, "sizes that only the run knows are not computed on GPUs yet", "compile for a CPU")
        self.computed[op.symbol] = self.most(operation.inputs[0].type.shape[0])

    def operation(self, operation: Operation, outputs: list[Value]) -> None:
        if isinstance(operation.op, ops.WeightOp):
            self.refs[operation.result] = BufferRef(Storage.WEIGHT, operation.op.name, operation.result.type)
            return
        for o in operation.body or ():
            if o.op.defines_dim:
                self.defines(o)
        alias = self.alias(operation, outputs)
        if alias is not None:
            self.refs[operation.results[0]] = alias
            return
        for result in operation.results:
            self.refs[result] = self.place(result, outputs)
        flops = region_flops(operation)
        temporaries: dict[Temporary, BufferRef] = {}
        in_place = any(r in self.states for r in operation.results)
        if in_place:
            _require_write(operation, self.function)
        for lowered in lower_region(operation, self.ctx, in_place):
            fewer = lowered.prepares or (lowered.when is not None and lowered.when.most is not None)  # another kernel computes it, or more rows
            self.call(lowered, operation, temporaries, 0 if fewer else flops)
            flops = flops if fewer else 0

    def place(self, result: Value, outputs: list[Value]) -> BufferRef:
        if result in self.states:
            return self.states[result]
        for i, v in enumerate(outputs):
            if v is result and i not in self.taken:
                self.taken.add(i)
                return BufferRef(Storage.OUTPUT, i, result.type)
        return self.intermediate(result.type)

    def intermediate(self, type: TensorType) -> BufferRef:
        """A new buffer of the arena."""
        self.most(type.bytes)
        ref = BufferRef(Storage.ARENA, len(self.arena), type)
        self.arena.append(ref)
        return ref

    def alias(self, operation: Operation, outputs: list[Value]) -> BufferRef | None:
        """A region that only reshapes something in memory needs no code: the same bytes under another type."""
        body = operation.body
        assert body is not None
        inner = [o for o in body if not o.op.terminator]
        if len(operation.results) != 1 or not inner or not all(isinstance(o.op, ops.Reshape) for o in inner) or len(body.args) != 1:
            return None
        if any(v is operation.results[0] for v in outputs):
            return None
        source = self.refs[operation.inputs[0]]
        return BufferRef(source.storage, source.key, operation.results[0].type)

    def call(self, lowered: LoweredKernel, operation: Operation, temporaries: dict[Temporary, BufferRef], flops: Dim = 0) -> None:
        body = operation.body
        assert body is not None
        bound = dict(zip(body.args, operation.inputs, strict=True))
        arguments: list[BufferRef] = []
        for v in lowered.values:
            if isinstance(v, Temporary) and v.symbol:
                arguments.append(BufferRef(Storage.DIM, v.symbol, v.type))
                continue
            if isinstance(v, Temporary):
                if v not in temporaries:
                    temporaries[v] = self.intermediate(v.type)
                arguments.append(temporaries[v])
                continue
            literal = v.op_as(ops.Constant)
            arguments.append(self.refs[bound.get(v, v)] if literal is None else self.literal(literal))
        parallel = any(isinstance(s, For) and s.axis.kind is PARALLEL for s in walk_statements(lowered.kernel.body))
        location = next((str(o.loc) for o in reversed(body) if o.loc is not None), str(operation.loc or ""))
        about = (lowered.label, location, flops, parallel, lowered.schedule, lowered.launch, lowered.when)
        self.calls.append(KernelCall(lowered.kernel, tuple(arguments), lowered.writes, *about))

    def literal(self, constant: Operation) -> BufferRef:
        assert isinstance(constant.op, ops.Constant)
        value = constant.op.value
        name = "literal." + hashlib.sha256(repr((value.dtype.name, value.shape)).encode() + value.data).hexdigest()[:16]
        type = TensorType(value.shape, value.dtype)
        if name not in self.module.weights:
            self.module.add_weight(Weight(name, type, value.array))
        return BufferRef(Storage.WEIGHT, name, type)

    def copy(self, value: Value, target: BufferRef) -> None:
        """Hand out a value that lies elsewhere: an input, a weight, or an output returned twice."""
        stored = value.type.stored  # padding of a packed layout is copied too
        body = Block([stored])
        result = Operation(ops.Reshape(stored.shape), [body.args[0]], [stored])
        body.append(result)
        body.append(Operation(ops.Yield(), [result.result], []))
        region = Operation(ops.Fused(), [value], [stored], body=body)
        self.refs[region.results[0]] = target
        for lowered in lower_region(region, self.ctx):
            self.call(lowered, region, {})
        region.drop_operands()


def _values(function: Function) -> Iterator[Value]:
    """Every value of a function and of its regions."""
    yield from function.args
    for o in function.body:
        yield from o.results
        if o.body is not None:
            yield from o.body.args
            for inner in o.body:
                yield from inner.results


def _require_write(region: Operation, function: Function) -> None:
    """Raises unless the region does nothing but write rows into a state that nothing else reads, and that it becomes the next value of."""
    body = region.body
    assert body is not None
    write = body.outputs[0].producer
    if write is not None and isinstance(write.op, (ops.CacheWrite, ops.PagedWrite)) and len(region.results) == 1:
        inner = write.inputs[0]
        if inner.producer is None and inner.has_one_use:
            state = region.inputs[inner.index]
            if state.has_one_use and function.next_states.get(state) is region.result:
                return
    help = "a state becomes what one cache_write or paged_write makes of it, and nothing else reads what it was before"
    raise unsupported(write or region, f"a state of '{function.name}' is not written in place", help)


def region_flops(region: Operation) -> Dim:
    """Arithmetic operations of all that a region computes."""
    assert region.body is not None
    total: Dim = 0
    for o in region.body:
        total = total + o.op.flops(o.operand_types, [r.type for r in o.results])
    return total


def _distinct(ports: tuple[Port, ...]) -> tuple[Port, ...]:
    seen: dict[str, int] = {}
    out: list[Port] = []
    for p in ports:
        n = seen.get(p.name, 0)
        seen[p.name] = n + 1
        out.append(p if n == 0 else Port(f"{p.name}_{n}", p.type))
    return tuple(out)
