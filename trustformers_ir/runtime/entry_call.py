"""One entry of a compiled module, as it is called: arguments in order, defaults filled in, everything checked, dims bound, errors told.

What executes the code is of no concern here: the executables of CPUs and of GPUs both derive from it.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from trustformers_ir.ir.abi import Entry, Manifest, Port
from trustformers_ir.ir.binding import Shaped, bind_dims
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.dims import Dim, Facts, evaluate, parse_dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.runtime import memory
from trustformers_ir.runtime.arguments import Array, defaults_of, dtype_of, is_tensor, ready, tensor_dtype
from trustformers_ir.runtime.computed import computed_dims

MAX_PLANS = 1024  # combinations of shapes remembered per entry
P = TypeVar("P")


@dataclass(frozen=True)
class Bound:
    """What the shapes of the inputs say: the value of each dim symbol, shape and dtype of each output, and the sizes that were asked for.
    ``tensors``: some input is a tensor of torch."""

    env: Mapping[str, int]
    results: tuple[tuple[tuple[int, ...], DType], ...]
    sizes: tuple[int, ...]
    tensors: bool

    def dims(self, manifest: Manifest) -> list[int]:
        """The value of every symbol, in the order of the manifest."""
        return [self.env.get(name, fact.low) for name, fact in manifest.symbols]

    @functools.cached_property
    def arrays(self) -> tuple[tuple[tuple[int, ...], Any], ...]:
        """Shape and dtype of each output as the caller gets it: numpy's, or torch's where tensors came in."""
        return tuple((shape, tensor_dtype(dtype) if self.tensors else dtype.numpy) for shape, dtype in self.results)


class EntryCall(Generic[P]):
    """One entry; ``P`` is what an executable keeps for each combination of shapes."""

    def __init__(self, manifest: Manifest, entry: Entry) -> None:
        self.manifest = manifest
        self.entry = entry
        self.facts = Facts(dict(manifest.symbols))
        self.first_state = len(entry.inputs) - entry.states
        self.names = {p.name: i for i, p in enumerate(entry.inputs)}
        self.plans: dict[tuple[object, ...], P] = {}
        self.computed = computed_dims(manifest)

    @property
    def devices(self) -> tuple[str, ...]:
        """On which tensors may lie, by torch's names."""
        return ("cpu",)

    @abstractmethod
    def __call__(self, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The outputs: one as it is, several as a tuple."""

    @abstractmethod
    def plan(self, arrays: Sequence[Array]) -> P:
        """Checks the arrays against the ports and computes all that follows from their shapes."""

    def fixed(self, arrays: Sequence[np.ndarray]) -> tuple[list[Array], Callable[[], None]]:
        """The outputs of these inputs, and what computes them when it is called: for who changes what is in the arrays, call by call. The arrays are
        as the code reads them."""
        raise CompilerError.of(Code.NOT_BUILT, f"'{self.entry.name}' cannot be called over and over on this target yet", help="compile it for a CPU")

    def state(self, x: Any, port: Port) -> Array:
        """Memory that is written in place. ``INPUT_STATE`` for what would have to be copied."""
        if is_tensor(x) and x.is_contiguous() and not x.requires_grad:
            return ready(x, port, self.devices)
        message = f"'{port.name}' is a state, which a call writes in place: it has to be a writable array whose elements lie one after the other"
        raise CompilerError.of(Code.INPUT_STATE, message, Where(tensor=port.name), f"numpy.zeros(…, {port.type.dtype.name!r}), and keep it")

    def prepared(self, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[P, list[Array]]:
        """What follows from the shapes, and the inputs as arrays that the code can read."""
        ports = self.entry.inputs
        if named or len(given) != len(ports):
            given = self.arranged(given, named)
        arrays: list[Array] = []
        key: list[object] = []
        for n, x in enumerate(given):
            if type(x) is not np.ndarray or not x.flags.carray or not x.dtype.isnative:
                x = ready(x, ports[n], self.devices) if n < self.first_state else self.state(x, ports[n])
            arrays.append(x)
            key += (x.shape, x.dtype)
        known = tuple(key)
        plan = self.plans.get(known)
        if plan is None:
            plan = self.plan(arrays)
            if len(self.plans) >= MAX_PLANS:
                self.plans.clear()
            self.plans[known] = plan
        return plan, arrays

    @functools.cached_property
    def costs(self) -> tuple[Dim, Dim]:
        """Flops and bytes of one call."""
        kernels = self.entry.kernels
        return sum((k.flops for k in kernels), start=0), sum((k.bytes for k in kernels), start=0)

    def arranged(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        """All inputs in the order of the ports. ``INPUT_NAME`` or ``INPUT_COUNT`` when they are not the ones that are taken."""
        ports = self.entry.inputs
        takes = f"'{self.entry.name}' takes {', '.join(f'{p.name}: {p.type}' for p in ports) or 'no inputs'}"
        with Collector() as problems:
            if len(given) > len(ports):
                problems.add(Code.INPUT_COUNT, f"{len(given)} inputs were given, {len(ports)} are taken", help=takes)
            for name in named:
                if name not in self.names:
                    problems.add(Code.INPUT_NAME, f"there is no input '{name}'", Where(tensor=name), takes)
                elif self.names[name] < len(given):
                    problems.add(Code.INPUT_NAME, f"input '{name}' is given twice, by position and by name", Where(tensor=name), takes)
            missing = [p.name for p in ports[len(given) :] if p.name not in named and p.name not in self.defaults]
            if missing:
                problems.add(Code.INPUT_COUNT, f"{len(missing)} of {len(ports)} inputs are missing: {', '.join(missing)}", help=takes)
        found = {p.name: x for p, x in zip(ports, given, strict=False)} | dict(named)
        return tuple(found[p.name] if p.name in found else self.filled(p, found) for p in ports)

    @functools.cached_property
    def defaults(self) -> dict[str, int]:
        """Inputs that may be left out, with the number that then fills them: ``default.<name>`` of the metadata."""
        return defaults_of(self.manifest, self.entry.inputs)

    def filled(self, port: Port, found: Mapping[str, Any]) -> np.ndarray:
        """The default of an input, in the shape that the other inputs give it."""
        others = [(p, np.shape(found[p.name])) for p in self.entry.inputs if p.name in found]
        env = bind_dims([Shaped(p.name, p.type.shape, shape) for p, shape in others if len(shape) == p.type.rank], self.facts)
        try:
            shape = port.type.concrete(env)
        except KeyError as error:
            message = f"input '{port.name}' was left out, and no other input gives the dim {error}"
            raise CompilerError.of(Code.INPUT_COUNT, message, Where(tensor=port.name), "give it") from None
        return np.full(shape, self.defaults[port.name], port.type.dtype.numpy)

    def bound(self, arrays: Sequence[Array], sizes: Sequence[Dim]) -> Bound:
        """Checks the arrays against the ports; gives what follows from their shapes, ``sizes`` among it. ``CompilerError`` with all that is wrong."""
        entry = self.entry
        with Collector() as problems:
            for port, array in zip(entry.inputs, arrays, strict=True):
                if dtype_of(array) is not port.type.dtype:
                    message = f"input '{port.name}' has the dtype {dtype_of(array) or array.dtype}; {port.type.dtype} is taken"
                    problems.add(Code.INPUT_DTYPE, message, Where(tensor=port.name), f"convert it first; the input is declared as {port.type}")
            shapes = [Shaped(p.name, p.type.shape, tuple(a.shape)) for p, a in zip(entry.inputs, arrays, strict=True)]
            solved = bind_dims(shapes, self.facts)
        try:
            env = {name: fact.low for name, fact in self.facts.symbols.items() if fact.low == fact.high} | solved
            for name, most in self.computed.items():
                env[name] = evaluate(most, env)
            results = tuple((p.type.concrete(env), p.type.dtype) for p in entry.outputs)
            values = tuple(evaluate(size, env) for size in sizes)
        except KeyError as error:
            raise CompilerError.of(Code.INPUT_SHAPE, f"no input determines the dim {error} of '{entry.name}'") from None
        except (ArithmeticError, ValueError):  # a division by a dim that is zero, a number too long to print
            raise CompilerError.of(Code.INPUT_SHAPE, f"the sizes of '{entry.name}' cannot be computed from these shapes") from None
        if any(not 0 <= n < 1 << 62 for n in env.values()) or any(n < 0 for shape, _ in results for n in shape):
            raise CompilerError.of(Code.DIM_RANGE, f"impossible sizes: {', '.join(f'{k} = {v}' for k, v in env.items())}")
        return Bound(env, results, values, any(map(is_tensor, arrays)))

    def host_outputs(self, bound: Bound) -> list[Array]:
        """Fresh outputs in the memory of the CPU, not initialised. ``OUT_OF_MEMORY``."""
        try:
            if bound.tensors:
                torch = sys.modules["torch"]
                return [torch.empty(shape, dtype=dtype) for shape, dtype in bound.arrays]
            return [np.empty(shape, dtype) for shape, dtype in bound.arrays]
        except (MemoryError, RuntimeError, ValueError):
            raise self.no_outputs(bound) from None

    def cut(self, results: list[Array], bound: Bound, dims: Sequence[int]) -> list[Array]:
        """Outputs in the sizes that the run has found, ``dims`` in the order of the manifest: what was written lies at their beginning."""
        env = {**bound.env, **dict(zip((name for name, _ in self.manifest.symbols), dims, strict=False))}
        out: list[Array] = []
        for port, array in zip(self.entry.outputs, results, strict=True):
            shape = port.type.concrete(env)
            out.append(array if shape == tuple(array.shape) else array.reshape(-1)[: math.prod(shape)].reshape(shape))
        return out

    def no_outputs(self, bound: Bound) -> CompilerError:
        """The error of outputs for which there is no memory."""
        sizes = ", ".join(f"{p.name}: {list(shape)}" for p, (shape, _) in zip(self.entry.outputs, bound.results, strict=True))
        return memory.no_memory(f"the outputs cannot be allocated ({sizes})")

    def check_outputs(self, bound: Bound) -> None:
        """``OUT_OF_MEMORY`` for outputs that the memory of the CPU cannot hold."""
        for port, (shape, dtype) in zip(self.entry.outputs, bound.results, strict=True):
            memory.check_size(memory.bytes_of(shape, dtype), f"output '{port.name}'")

    def out_of_range(self, number: int, index: int, env: Mapping[str, int]) -> CompilerError:
        """The error that the status word ``number`` stands for."""
        m = self.manifest
        if not 1 <= number <= len(m.sites):
            return CompilerError.of(Code.INDEX_OUT_OF_RANGE, f"an index is out of range: {index}")
        site = m.sites[number - 1]
        try:
            bound = evaluate(parse_dim(site.bound), env)
            shown = f"{site.bound} = {bound}" if site.bound != str(bound) else site.bound
        except (ValueError, KeyError, ArithmeticError):
            shown = site.bound
        place = re.fullmatch(r"(.+):([0-9]{1,9})( in .*)?", site.location)
        where = Where(file=place[1], line=int(place[2]), op=site.op) if place else Where(file=site.location or None, op=site.op)
        if site.op == "check":
            return CompilerError.of(Code.INPUT_VALUE, site.what, where)
        message = f"{site.op}: {site.what} is {index}, out of range of a size of {shown}"
        return CompilerError.of(Code.INDEX_OUT_OF_RANGE, message, where, "indices count from 0; negative ones count from the end")

