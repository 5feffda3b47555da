"""Exported programs as modules of our graph: the front end from end to end."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from trustformers_ir.frontend.names import unique_names
from trustformers_ir.frontend.torch_export.examples import Axis, Examples, is_cache
from trustformers_ir.frontend.torch_export.export import Exported, _Trained, decomposed, export, narrowed
from trustformers_ir.frontend.torch_export.importer import Importer, Unknown, dtype_of
from trustformers_ir.frontend.torch_export.nests import leaf_paths, nest_of
from trustformers_ir.frontend.torch_export.problems import Problems
from trustformers_ir.frontend.torch_export.registry import Refused
from trustformers_ir.frontend.torch_export.sites import NOWHERE, node_origin
from trustformers_ir.frontend.torch_export.sizes import Sizes, fact_of
from trustformers_ir.frontend.torch_export.weights import Weights
from trustformers_ir.ir.calling import Calling, Nest
from trustformers_ir.ir.core import Block, Function, Module, Value
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import SymbolFact, symbols_of
from trustformers_ir.ir.ops.region import Return
from trustformers_ir.ir.ops.shape import Reshape
from trustformers_ir.ir.progress import note
from trustformers_ir.ir.tensor import Tensor, as_tensor
from trustformers_ir.ir.tracing import Trace, tracing
from trustformers_ir.ir.types import TensorType

_NAME = re.compile(r"[^A-Za-z0-9_]")


class TorchNote(UserWarning):
    """Something about a compiled module of torch that its user would not expect: an axis that is fixed after all."""


def is_torch(model: Any) -> bool:
    """Whether ``model`` is a module or an exported program of torch."""
    mro = type(model).__mro__
    return any(c.__module__.startswith("torch.nn.modules") and c.__name__ == "Module" for c in mro) or _is_program(model)


def _is_program(model: Any) -> bool:
    return type(model).__name__ == "ExportedProgram" and type(model).__module__.startswith("torch.export")


def load_torch(model: Any, example_inputs: Any = None, dynamic: Any = None) -> Module:
    """The graph of a module or an exported program. ``CompilerError`` with all that is wrong, each at the user's line."""
    trained: CompilerError | None = None
    try:
        exported = decomposed(model) if _is_program(model) else export(model, example_inputs, dynamic)
    except _Trained as error:
        exported, trained = error.exported, error
    try:
        module, exported, more = _with_fewer_dims(model, exported)
    except CompilerError as error:
        raise CompilerError(*(trained.diagnostics if trained else ()), *error.diagnostics) from error
    if trained is not None:
        raise CompilerError(*trained.diagnostics)
    for text in (*exported.notes, *more):
        warnings.warn(text, TorchNote, stacklevel=2)
    return module


def _with_fewer_dims(model: Any, exported: Exported) -> tuple[Module, Exported, list[str]]:
    """The module of a program; one with sequences of the example's length, and then with all sizes of the example, where ours cannot decide what
    torch could. The first error where none of them does."""
    name = _module_name(model)
    try:
        module, notes = _imported(exported, name)
        return module, exported, notes
    except CompilerError as error:
        if exported.examples is None or not set(error.codes) <= UNPROVEN | {Code.TORCH_DATA_DEPENDENT}:  # of slices by sizes torch thinks so too
            raise
        first = error
    for fewer in narrowed(model, exported.examples):
        try:
            module, notes = _imported(fewer, name)
            return module, fewer, [f"what follows from a size cannot be decided ({first.diagnostics[0].where})", *notes]
        except CompilerError:
            continue
    raise first


BOUNDS = 4  # of sizes that are tried
UNPROVEN = {Code.TRACE_SHAPE, Code.UNDECIDED_DIM}


def _imported(exported: Exported, name: str) -> tuple[Module, list[str]]:
    """The module of a program, whose dims may be 1. Where that cannot be proven to be right (``x[1]`` of a batch), those dims are at least 2, as
    they were when torch looked at the program, and a note says so."""
    try:
        return import_program(exported, name), []
    except CompilerError as error:
        if not set(error.codes) <= UNPROVEN:
            raise
        first = error
    for most in sorted(getattr(first, "bounds", ()), reverse=True)[:BOUNDS]:
        try:
            module = import_program(exported, name, None, most)
        except CompilerError:
            continue
        bounded = [s for s, fact in module.facts.symbols.items() if fact.high == most]
        return module, [f"'{s}' is at most {most}: the code of the module has a table of that size" for s in bounded if s != "batch"]
    try:
        module = import_program(exported, name, {})
    except CompilerError:
        raise first from None
    larger = set(module.facts.symbols)
    for symbol in sorted(larger):
        try:
            module = import_program(exported, name, {s: 1 for s in module.facts.symbols if s not in larger - {symbol}})
            larger.discard(symbol)
        except CompilerError:
            continue
    return module, [f"'{s}' is at least 2: the code of the module asks for more than one element there" for s in sorted(larger)]


def _module_name(model: Any) -> str:
    name = getattr(getattr(model, "graph_module", None), "_get_name", lambda: "")() if _is_program(model) else type(model).__name__
    return _NAME.sub("_", name).strip("_") or "module"


class _Program(Importer):
    """An importer whose stored tensors are weights."""

    def __init__(self, trace: Trace, sizes: Sizes, problems: Problems, weights: Weights) -> None:
        super().__init__(trace, sizes, problems)
        self.weights = weights
        self.lows: Mapping[str, int] | None = None
        self.most: int | None = None
        self.prefix: str | None = None  # of the names of parameters, where the module is inside of another

    def fact(self, name: str, known: Any) -> SymbolFact:
        """What is known of a dim, from torch's range."""
        least = 1 if self.lows is None else self.lows.get(name, 2)
        fact = fact_of(None, None, least) if known is None else fact_of(known.lower, known.upper, least)
        if self.most is None or name == "batch" or fact.low > self.most or (fact.high is not None and fact.high <= self.most):
            return fact
        return SymbolFact(fact.low, self.most, fact.divisor)

    def stored(self, name: str, tensor: Any) -> Tensor:
        return self.weights.value(name, tensor)


def import_program(exported: Exported, name: str, lows: Mapping[str, int] | None = None, most: int | None = None) -> Module:
    """The module of a program. ``lows``: the dims that may be smaller than 2; None: all may be 1. ``most``: a bound of all dims but batches.
    ``CompilerError`` with all that it cannot be."""
    note("reading the program")
    program = exported.program
    module = Module(name)
    block = Block()
    running = Trace(module, block)
    sizes, problems = Sizes(), Problems()
    importer = _Program(running, sizes, problems, Weights(running))
    importer.lows, importer.most = lows, most
    importer.prefix = None if exported.specs is None else "model."
    with tracing(running):
        nodes = [n for n in program.graph.nodes if n.op == "placeholder"]
        leaves = _name_symbols(program, nodes, exported.examples, sizes)
        given, inputs = [], []
        for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
            value = _bound(importer, program, node, spec, leaves, block)
            given.append(value)
            if spec.kind.name == "USER_INPUT":
                inputs.append(value)
        outputs = importer.run(program.graph_module, given)
        results, nests = _results(importer, program, outputs, nodes)
        running.site = None
        try:
            problems.check()
        except CompilerError as error:
            error.bounds = importer.bounds  # type: ignore[attr-defined]
            raise
        in_spec, out_spec = exported.specs or (program.call_spec.in_spec, program.call_spec.out_spec)
        names = _output_names(out_spec, nests)
        values = [_named(running, n, v.value) for n, v in zip(names, results, strict=True)]
        running.builder.create(Return(), *values)
    module.add_function(Function("main", block))
    module.calling = _calling(in_spec, out_spec, exported.examples, inputs, nests, names)
    return module


# --- inputs ------------------------------------------------------------------------------------------------------------------------


def _name_symbols(program: Any, nodes: Sequence[Any], examples: Examples | None, sizes: Sizes) -> dict[str, str]:
    """Gives the symbols of the inputs names of ours, by the axes where they stand; the names of the inputs by those of their nodes."""
    import torch

    axes: Sequence[Mapping[int, Axis]] = examples.axes if examples is not None else ()
    signature = program.graph_signature
    user = [s.arg.name for s in signature.input_specs if s.kind.name == "USER_INPUT"]
    paths = list(examples.paths) if examples is not None else [p.removeprefix("0_").removeprefix("1_") for p in leaf_paths(program.call_spec.in_spec)]
    paths = paths if len(paths) == len(user) else user
    values = {n.name: n.meta.get("val") for n in nodes}
    taken: set[str] = set()
    shared: dict[tuple[str, int], str] = {}  # the length of keys and values is one in all layers
    for position, (node, path) in enumerate(zip(user, paths, strict=True)):
        fake = values.get(node)
        if not isinstance(fake, torch.Tensor):
            continue
        roles = axes[position] if position < len(axes) else {}
        for axis, size in enumerate(fake.shape):
            if isinstance(size, torch.SymInt):
                for symbol in sorted(size.node.expr.free_symbols, key=str):
                    if str(symbol) not in sizes.names:
                        plain = "batch" if axis == 0 else "seq" if axis == 1 else f"{path}_{axis}"
                        role = roles[axis].role if axis in roles else plain
                        cached = examples is not None and axis == 2 and fake.ndim == 4 and is_cache(path)
                        length = (role, int(examples.leaves[position].shape[axis])) if examples is not None and cached else None
                        if length in shared:
                            sizes.names[str(symbol)] = shared[length]
                            continue
                        role = "past" if cached and role == "seq" else role
                        chosen = role if role not in taken else f"{path}_{axis}"
                        while chosen in taken:
                            chosen += "_"
                        taken.add(chosen)
                        sizes.names[str(symbol)] = _NAME.sub("_", chosen)
                        if length is not None:
                            shared[length] = sizes.names[str(symbol)]
    return dict(zip(user, paths, strict=True))


def _bound(importer: _Program, program: Any, node: Any, spec: Any, leaves: Mapping[str, str], block: Block) -> Any:
    """What a placeholder of the program stands for."""
    kind = spec.kind.name
    importer.origin = node_origin(node)
    if kind == "USER_INPUT":
        if type(spec.arg).__name__ == "ConstantArgument":
            return spec.arg.value
        return _input(importer, program, node, leaves[spec.arg.name], block)
    if kind == "TOKEN":
        return Unknown()
    if kind == "CUSTOM_OBJ":
        message = f"the program holds an object of another library, '{spec.target}'"
        importer.problems.add(Code.TORCH_EXPORT, message, NOWHERE, "write it with functions of torch")
        return None
    stored = program.constants.get(spec.target) if kind == "CONSTANT_TENSOR" else None
    stored = program.state_dict.get(spec.target) if stored is None else stored
    stored = program.constants.get(spec.target) if stored is None else stored
    try:
        return importer.stored(spec.target if importer.prefix is None else spec.target.removeprefix(importer.prefix), stored)
    except Refused as refused:
        importer.problems.refused(NOWHERE, f"'{spec.target}'", refused)
    return Tensor(importer.trace, Value(TensorType(tuple(stored.shape), dtype_of(_like(stored.dtype)))))


def _like(dtype: Any) -> Any:
    import torch

    return dtype if dtype in (torch.float32, torch.int64) else torch.float32


def _input(importer: _Program, program: Any, node: Any, path: str, block: Block) -> Any:
    import torch

    fake = node.meta["val"]
    if not isinstance(fake, torch.Tensor):
        message = f"the input '{path}' is a number of Python that changes from call to call"
        importer.problems.add(Code.TORCH_INPUTS, message, NOWHERE, "give it as a tensor of one element, or as a number that is always the same")
        return 0
    facts = importer.trace.module.facts
    for size in fake.shape:
        if isinstance(size, torch.SymInt):
            for symbol in sorted(size.node.expr.free_symbols, key=str):
                known = program.range_constraints.get(symbol)
                (name,) = symbols_of(importer.sizes.of(symbol))
                if name not in facts.symbols:
                    facts.declare(name, importer.fact(name, known))
    try:
        type = importer.type_of(fake)
    except Refused as refused:
        importer.problems.refused(NOWHERE, f"the input '{path}'", refused)
        type = TensorType((), dtype_of(torch.float32))
    assert type is not None
    name = _NAME.sub("_", path)
    return Tensor(importer.trace, block.add_arg(type, name if not name[:1].isdigit() else f"input_{name}"))


# --- outputs -----------------------------------------------------------------------------------------------------------------------


def _results(importer: _Program, program: Any, outputs: Any, nodes: Sequence[Any]) -> tuple[list[Tensor], list[Any]]:
    """The tensors that the program hands out, and for each leaf of its result the tensor or the constant that it is."""
    results: list[Tensor] = []
    leaves: list[Any] = []
    for spec, value in zip(program.graph_signature.output_specs, outputs or [], strict=True):
        kind = spec.kind.name
        if kind == "USER_OUTPUT":
            if isinstance(value, Tensor) or hasattr(value, "terms"):
                results.append(as_tensor(value))
                leaves.append(results[-1])
            else:
                leaves.append(Nest("constant", value=value))
        elif kind.endswith("MUTATION"):
            _refuse_mutation(importer, program, spec, nodes)
        elif kind == "TOKEN":
            continue
    if not results and not len(importer.problems):
        message = "the module returns no tensor"
        importer.problems.add(Code.TORCH_RESULT, message, NOWHERE, "return what it computes")
    return results, leaves


def _refuse_mutation(importer: _Program, program: Any, spec: Any, nodes: Sequence[Any]) -> None:
    what = {"BUFFER_MUTATION": "its buffer", "PARAMETER_MUTATION": "its parameter"}.get(spec.kind.name, "its input")
    written = next((n for n in program.graph.nodes if n.name == spec.arg.name), None)
    origin = NOWHERE if written is None else node_origin(written)
    own = "take it as an input and return the new one, or keep it out of forward"
    help = "make a copy first: x = x.clone(), or return x + 1" if what == "its input" else own
    importer.problems.add(Code.TORCH_MUTATION, f"the module writes into {what} '{spec.target}'", origin, help)


def _output_names(spec: Any, nests: Sequence[Any]) -> list[str]:
    paths = list(leaf_paths(spec)) if spec is not None else []
    if len(paths) != len(nests):
        paths = [str(i) for i in range(len(nests))]
    named = [p for p, leaf in zip(paths, nests, strict=True) if isinstance(leaf, Tensor)]
    if len(named) == 1 and not named[0]:
        return ["output"]
    return list(unique_names(f"output_{p}" if not p or p[0].isdigit() else p for p in named))


def _named(trace: Trace, name: str, value: Value) -> Value:
    """A result under its name: of its own where it is an input, a weight, or handed out twice."""
    if value.name or value.producer is None or value.block is not None:
        value = trace.builder(Reshape(value.type.shape), value)
    value.name = name
    return value


def _calling(
    in_spec: Any, out_spec: Any, examples: Examples | None, inputs: Sequence[Any], nests: Sequence[Any], names: Sequence[str]
) -> Calling:
    leaves = iter([Nest("leaf", name=x.value.name) if isinstance(x, Tensor) else Nest("constant", value=x) for x in inputs])
    tree = nest_of(in_spec, leaves)
    args, kwargs = tree.children
    every = (*(_argument(n, i) for i, n in enumerate(args.children)), *kwargs.keys)
    labels = every if examples is None else examples.names
    parameters = tuple(zip(labels, (*args.children, *kwargs.children), strict=True))
    out = iter(names)
    results = iter([Nest("leaf", name=next(out)) if isinstance(x, Tensor) else x for x in nests])
    return Calling(parameters, nest_of(out_spec, results))


def _argument(nest: Nest, position: int) -> str:
    return nest.name if nest.kind == "leaf" else f"args_{position}"
