"""A graph of ATen ops, node by node, in our ops.

What a node cannot be is noted with its line, and the walk goes on behind it with a stand-in of the type that torch inferred, so that all problems
of a model are listed at once. After each op the types that both sides inferred are compared: a function of ``aten/`` that is wrong about a shape or a
dtype is found at the node where it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trustformers_ir.frontend.torch_export import aten
from trustformers_ir.frontend.torch_export.problems import Problems
from trustformers_ir.frontend.torch_export.registry import ATEN, REFUSED, Call, Refused
from trustformers_ir.frontend.torch_export.sites import NOWHERE, Origin, node_origin
from trustformers_ir.frontend.torch_export.sizes import NoDim, Sizes, constants_of
from trustformers_ir.ir.core import Value
from trustformers_ir.ir.diagnostics import Code, CompilerError, DiagnosticError, InternalError
from trustformers_ir.ir.dims import SymExpr, UndecidedDim, symbols_of
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.tracing import Trace
from trustformers_ir.ir.types import TensorType

assert aten.FAMILIES

# What says something about values or sizes, and computes nothing.
CHECKS = frozenset({
    "aten._assert_async.default", "aten._assert_async.msg", "aten._assert_scalar.default", "aten._assert_tensor_metadata.default",
    "aten.sym_constrain_range.default", "aten._linalg_check_errors.default", "aten.sym_constrain_range_for_size.default",
})  # fmt: skip
# Wrappers around a part of the graph: the position of the part among their arguments. What they switch is of no concern at inference.
UNKNOWN = "keep sizes fixed: choose by elements with torch.where(mask, x, 0), x.masked_fill(~mask, 0)"
ITEM = "compute on with the tensor, or give the number as an argument that is always the same"
WRAPPERS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4, "hints_wrapper": 0}


class Importer:
    """One walk over a graph and the graphs inside of it."""

    def __init__(self, trace: Trace, sizes: Sizes, problems: Problems) -> None:
        self.trace = trace
        self.sizes = sizes
        self.problems = problems
        self.origin: Origin = NOWHERE
        self.bounds: set[int] = set()  # numbers in the dims about which something could not be decided

    # --- types ------------------------------------------------------------------------------------------------------------------

    def type_of(self, fake: Any) -> TensorType | None:
        """The type of torch's example of a value; None for what is no tensor. ``Refused`` for one that we have no type for."""
        import torch

        if not isinstance(fake, torch.Tensor):
            return None
        if fake.layout is not torch.strided or fake.is_quantized:
            kind = "quantized" if fake.is_quantized else str(fake.layout).removeprefix("torch.")
            raise Refused(f"a {kind} tensor", "use a dense tensor: x.to_dense(), x.dequantize()")
        return TensorType(tuple(self._dim(d) for d in fake.shape), dtype_of(fake.dtype))

    def _dim(self, size: Any) -> Any:
        dim = self.sizes.dim(size)
        for name in symbols_of(dim):
            if name not in self.trace.module.facts.symbols:  # torch calls u0, u1, … what only the run knows
                raise Refused("a size of the result follows from the numbers in a tensor, which only the run knows", UNKNOWN, dynamic=True)
        if isinstance(dim, SymExpr):  # what can only be one number is that number: broadcasting goes by sizes that are written as 1
            low, high = self.trace.module.facts.bounds(dim)
            return int(low) if low == high else dim
        return dim

    def types_of(self, node: Any) -> tuple[TensorType | None, ...]:
        found = node.meta.get("val")
        many = found if isinstance(found, (tuple, list)) else (found,)
        return tuple(self.type_of(v) for v in many)

    # --- the walk ---------------------------------------------------------------------------------------------------------------

    def run(self, graph_module: Any, given: Sequence[Any]) -> Any:
        """What the graph hands out, a nest of tuples and lists, for what its placeholders are bound to."""
        env: dict[Any, Any] = {}
        feed = iter(given)
        outer = self.origin
        for node in graph_module.graph.nodes:
            self.origin = node_origin(node)
            self.origin = outer if self.origin is NOWHERE else self.origin
            self.trace.site = self.origin.site
            if node.op == "placeholder":
                env[node] = next(feed)
            elif node.op == "get_attr":
                env[node] = self._attribute(graph_module, node.target)
            elif node.op == "call_function":
                env[node] = self._guarded(node, env)
            elif node.op == "output":
                self.origin, self.trace.site = outer, outer.site
                return self._read(node.args[0], env)
            else:
                raise InternalError.of(Code.INTERNAL, f"a node of kind '{node.op}' in an exported graph")
        return None

    def _attribute(self, graph_module: Any, name: str) -> Any:
        import torch

        found = graph_module
        for part in name.split("."):
            found = getattr(found, part)
        return self.stored(name, found) if isinstance(found, torch.Tensor) else found

    def stored(self, name: str, tensor: Any) -> Tensor:
        raise NotImplementedError

    def _guarded(self, node: Any, env: Mapping[Any, Any]) -> Any:
        """The value of a call, or a stand-in and a note of what is wrong."""
        try:
            return self._call(node, env)
        except Refused as refused:
            if not (refused.dynamic and self._is_known(node)):
                self.problems.refused(self.origin, self.describe(node), refused)
        except NoDim as error:
            self.problems.add(Code.TORCH_SIZE, f"{self.describe(node)}: the size {error} has no form here", self.origin)
        except UndecidedDim as error:
            self.problems.add(Code.UNDECIDED_DIM, f"{self.describe(node)}: {error}", self.origin)
        except CompilerError as error:
            self._remember(node, env)
            for d in error.diagnostics:
                self.problems.add(d.code, f"{self.describe(node)}: {d.message}", self.origin, d.help)
        except DiagnosticError:
            raise
        except Exception as error:
            message = f"{self.describe(node)} cannot be read: {type(error).__name__}: {error}"
            raise InternalError.of(Code.INTERNAL, message) from error
        return self._stand_in(node)

    def _is_known(self, node: Any) -> bool:
        return any(isinstance(a, Unknown) for a in node.args)

    def _remember(self, node: Any, env: Mapping[Any, Any]) -> None:
        for value in _flat(env.get(n) for n in node.all_input_nodes):
            dims = value.shape if isinstance(value, Tensor) else (value,) if isinstance(value, SymExpr) else ()
            self.bounds.update(n for d in dims for n in constants_of(d) if n > 2)

    def _stand_in(self, node: Any) -> Any:
        found = node.meta.get("val")
        try:
            types = self.types_of(node)
        except (Refused, NoDim):
            return Unknown()
        values = tuple(Unknown() if t is None else Tensor(self.trace, Value(t)) for t in types)
        return values if isinstance(found, (tuple, list)) else values[0]

    def _call(self, node: Any, env: Mapping[Any, Any]) -> Any:
        import torch

        target = node.target
        if target is operator.getitem:
            many = env[node.args[0]]
            return many if isinstance(many, Unknown) else many[node.args[1]]
        found = node.meta.get("val")
        name = str(target)
        if name in CHECKS:
            return None
        if name == "aten._local_scalar_dense.default":
            return _Number(self.origin)
        numbers = [a for a in node.args if isinstance(env.get(a) if isinstance(a, torch.fx.Node) else a, _Number)]
        if numbers and not isinstance(found, torch.Tensor):
            return env[numbers[0]]
        number = self._number(found)
        if number is not None:
            return number
        wrapped = getattr(target, "__name__", "")
        if wrapped == "with_effects" and str(node.args[1]) in CHECKS:
            return Unknown()
        if wrapped in WRAPPERS:
            return self._wrapped(WRAPPERS[wrapped], node, env)
        name = name.removeprefix("aten.")
        if name in REFUSED:
            why, help, dynamic = REFUSED[name]
            raise Refused(why, help, dynamic)
        build = ATEN.get(name)
        if build is None:
            raise Refused(*self.problems.missing(target))
        if name.startswith("as_strided"):
            _check_rows(node.args[0].meta.get("val"))
        args = [self._read(a, env) for a in node.args]
        kwargs = {k: self._read(v, env) for k, v in node.kwargs.items() if k not in _DROPPED}
        unknown = [a for a in _flat((*args, *kwargs.values())) if isinstance(a, Unknown)]
        for number in unknown[:1]:
            if isinstance(number, _Number):
                self.origin = number.origin
                raise Refused("the number in a tensor as a number of Python, which a size or an index is made of", ITEM, dynamic=True)
        if unknown:
            return self._stand_in(node)
        call = Call(self.trace, name, self.types_of(node))
        return self._checked(node, call, self._fitting(build, target)(call, *args, **kwargs))

    @staticmethod
    def _fitting(build: Callable[..., Any], target: Any) -> Callable[..., Any]:
        return build

    def _number(self, found: Any) -> Any:
        """A size that torch computed, as a dim; a float of sizes as a scalar tensor; None for tensors."""
        import torch

        if isinstance(found, torch.SymInt):
            return self._dim(found)
        if isinstance(found, torch.SymFloat):
            return self.sizes.number(found.node.expr)
        if isinstance(found, torch.SymBool):
            return Unknown()  # only asked about by checks
        return found if isinstance(found, (bool, int, float)) else None

    def _wrapped(self, position: int, node: Any, env: Mapping[Any, Any]) -> Any:
        if position == 4 and node.args[2] is not False and node.args[2] is not None and node.args[0] == "cpu":
            raise Refused("autocast", "cast the inputs or the module instead: model.to(torch.bfloat16)")
        args = [self._read(a, env) for a in node.args]
        return self.run(args[position], args[position + 1 :])

    def _read(self, arg: Any, env: Mapping[Any, Any]) -> Any:
        """An argument of a node: nodes by their values, torch's dtypes by ours."""
        import torch

        if isinstance(arg, torch.fx.Node):
            return env[arg]
        if isinstance(arg, (tuple, list)):
            return [self._read(a, env) for a in arg]
        if isinstance(arg, torch.dtype):
            return dtype_of(arg)
        return arg

    def _checked(self, node: Any, call: Call, made: Any) -> Any:
        """The results, compared with what torch inferred."""
        many = made if isinstance(made, (tuple, list)) else (made,)
        for n, (wanted, value) in enumerate(zip(call.results, many, strict=False)):
            if wanted is None or not isinstance(value, Tensor):
                continue
            same = value.dtype is wanted.dtype and value.ndim == len(wanted.shape)
            if not same or any(_differ(call, a, b) for a, b in zip(value.shape, wanted.shape, strict=True)):
                message = f"result {n} of {self.describe(node)} is {value.type} here, and {wanted} in torch"
                raise InternalError.of(Code.INTERNAL, message)
        return made

    # --- words ------------------------------------------------------------------------------------------------------------------

    def describe(self, node: Any) -> str:
        """A call in words: the op and the types of its tensors."""
        import torch

        def shown(arg: Any) -> list[str]:
            if isinstance(arg, (tuple, list)):
                return [text for a in arg for text in shown(a)]
            if isinstance(arg, torch.fx.Node):
                fake = arg.meta.get("val")
                if isinstance(fake, torch.Tensor):
                    return [f"{str(fake.dtype).removeprefix('torch.')}[{', '.join(self._size(d) for d in fake.shape)}]"]
            return []

        types = [text for a in (*node.args, *node.kwargs.values()) for text in shown(a)]
        name = str(node.target) if not hasattr(node.target, "_opname") else f"{node.target.namespace}.{node.target._opname}"
        return f"{name}({', '.join(types)})"

    def _size(self, size: Any) -> str:
        try:
            return str(self.sizes.dim(size))
        except NoDim:
            return str(size)


class Unknown:
    """The value of a node that could not be computed and has no type either."""


@dataclass(frozen=True)
class _Number(Unknown):
    """The number in a tensor as Python has it. Only who makes a size or an index of it is at fault."""

    origin: Origin


def _check_rows(fake: Any) -> None:
    """``as_strided`` goes by the memory of its operand, which here is always row by row: so it has to be in torch."""
    if not fake.is_contiguous() or fake.storage_offset() != 0:
        raise Refused("strides over a tensor that is a view of another", "make it contiguous first: x.contiguous().as_strided(…), or use x.unfold")


def _flat(args: Iterable[Any]) -> Iterator[Any]:
    for a in args:
        if isinstance(a, (tuple, list)):
            yield from _flat(a)
        else:
            yield a


_DROPPED = frozenset({"device", "layout", "pin_memory", "memory_format", "non_blocking", "generator"})


def _differ(call: Call, a: Any, b: Any) -> bool:
    """Whether two dims are surely different."""
    if not isinstance(a, SymExpr) and not isinstance(b, SymExpr):
        return bool(a != b)
    try:
        return not call.facts.equal(a, b)
    except UndecidedDim:
        return False


def dtype_of(dtype: Any) -> DType:
    """Ours for one of torch's."""
    name = str(dtype).removeprefix("torch.")
    try:
        return DType.parse(name)
    except KeyError:
        raise Refused(f"the dtype {name}", "compute in one of float32, float64, float16, bfloat16, int8 … int64, uint8, bool, complex64") from None


__all__ = ["Importer", "Unknown", "dtype_of"]
