"""StableHLO files, executed by XLA and by the dialect's own interpreter, with the values inside them on request.

XLA compiles for sizes that are known, so the function of a file is called by one whose arguments have those of the inputs at hand, and shapes are
refined from there (as ``jax.export`` does it). Files that this project wrote name the results of the graph that values are, in their locations
(``codegen/export/stablehlo/write.py``); values are known under those names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.stablehlo.text import WORDS
from trustformers_ir.codegen.export.stablehlo.write import NAME
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.tools.agreement.stablehlo_interpreter import interpret

_INNER = "given"  # what the function of a file is called where another one calls it
_RESULTS = re.compile(r"(\d+:\w+\.\d+[,;]?|;)+")
_ODD = (DType.bf16, DType.f8e4m3)  # which numpy lacks
DTYPES: Mapping[str, DType] = {word: dtype for dtype, word in WORDS.items()}


def packages() -> tuple[Any, Any]:
    """``jax._src.interpreters.mlir`` and ``jaxlib.mlir.ir``, which read and refine modules. ``MISSING_DEPENDENCY``"""
    try:
        from jax._src.interpreters import mlir
        from jaxlib.mlir import ir
    except ImportError as error:
        message = "executing StableHLO files needs the package jax, which is not installed"
        raise CompilerError.of(Code.MISSING_DEPENDENCY, message, help="pip install 'trustformers_ir[stablehlo]'") from error
    return mlir, ir


@dataclass(frozen=True)
class StableHloFile:
    """A file, and what it says of itself."""

    path: str
    text: str = field(repr=False)
    inputs: Mapping[str, DType]
    outputs: Sequence[DType]
    least: DType | None  # the narrowest float dtype of its constants of more than one element
    _compiled: dict[tuple[object, ...], Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, path: str) -> StableHloFile:
        """Reads and verifies a file with a function ``main``. ``UNREADABLE``"""
        mlir, ir = packages()
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
            with mlir.make_ir_context():
                module = ir.Module.parse(text)
                module.operation.verify()
                main = _main(module)
                names = [_name(a.location, n) for n, a in enumerate(main.arguments)]
                inputs = {name: _dtype(a.type) for name, a in zip(names, main.arguments, strict=True)}
                outputs = [_dtype(t) for t in main.type.results]
                constants = [_dtype(o.results[0].type) for o in main.entry_block if o.operation.name == "stablehlo.constant" and _is_many(o)]
        except CompilerError:
            raise
        except Exception as error:
            message = f"'{path}' is no StableHLO file: {_first_line(error)}"
            raise CompilerError.of(Code.UNREADABLE, message, Where(file=path)) from error
        floats = [d for d in constants if d.is_float]
        return cls(path, text, inputs, outputs, min(floats, key=lambda d: d.bits, default=None))

    def xla(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs by XLA on the CPU, with all of its rewrites, as its users have it."""
        return self._by("XLA", arrays, self._execute)

    def interpreter(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs by the interpreter of the dialect, whose definition it is."""
        return self._by("the interpreter of StableHLO", arrays, self._interpret)

    def xla_values(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Results of operations, ``12:linear.0``, by XLA: of a module that hands out all of them."""
        return self._values(arrays, self._execute)

    def interpreter_values(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same by the interpreter."""
        return self._values(arrays, self._interpret)

    # -- the two ways --------------------------------------------------------------------------------------------------------

    def _by(self, program: str, arrays: Mapping[str, np.ndarray], how: Callable[..., tuple[list[np.ndarray], list[str]]]) -> list[np.ndarray]:
        given = self._feed(arrays)
        try:
            return how(given, False)[0]
        except Exception as error:
            message = f"{program} cannot execute '{self.path}': {_first_line(error)}"
            raise CompilerError.of(Code.CHECK_FAILED, message, Where(file=self.path), "--by names the programs that are to execute files") from error

    def _values(self, arrays: Mapping[str, np.ndarray], how: Callable[..., tuple[list[np.ndarray], list[str]]]) -> dict[str, np.ndarray]:
        try:
            found, names = how(self._feed(arrays), True)
        except Exception:  # it is said where the outputs are computed
            return {}
        return {result: a for a, told in zip(found, names, strict=True) for result in told.split(",") if result}

    def _feed(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(arrays[name], dtype.numpy) for name, dtype in self.inputs.items()]

    def _execute(self, given: Sequence[np.ndarray], values: bool) -> tuple[list[np.ndarray], list[str]]:
        import jax
        from jax._src.lib import _jax, xla_client

        device = jax.devices("cpu")[0]
        key = (values, *(a.shape for a in given))
        if key not in self._compiled:
            mlir, _ = packages()
            module, names = self._refined(given, values)
            code = mlir.module_to_bytecode(module)
            devices = _jax.DeviceList((device,))
            self._compiled[key] = device.client.compile_and_load(code, devices, xla_client.CompileOptions()), names
        executable, names = self._compiled[key]
        with jax.enable_x64(True):
            buffers = [jax.device_put(a, device) for a in given]
        made = executable.execute_sharded(buffers).disassemble_into_single_device_arrays()
        return [np.asarray(a[0]) for a in made], names

    def _interpret(self, given: Sequence[np.ndarray], values: bool) -> tuple[list[np.ndarray], list[str]]:
        mlir, _ = packages()
        module, names = self._refined(given, values, plain=True)
        made = interpret(mlir.module_to_bytecode(module), [np.require(_plain(a), requirements="C") for a in given])
        return made if values else [a.astype(d.numpy) for a, d in zip(made, self.outputs, strict=True)], names

    def _refined(self, given: Sequence[np.ndarray], values: bool, plain: bool = False) -> tuple[Any, list[str]]:
        """A module for the sizes of these arrays; with ``values``, which results of operations each of its outputs is. ``plain``: its inputs and
        outputs are numbers that numpy has."""
        mlir, ir = packages()
        with mlir.make_ir_context(), ir.Location.unknown():
            module = ir.Module.parse(self.text)
            main = _main(module)
            names = _expose(ir, main) if values else [""] * len(self.outputs)
            _call(ir, module, main, given, plain)
            return mlir.refine_polymorphic_shapes(module), names


def _main(module: Any) -> Any:
    for o in module.body:
        if o.operation.name == "func.func" and o.attributes["sym_name"].value == NAME:
            return o
    raise ValueError(f"it has no function '{NAME}'")


def _call(ir: Any, module: Any, main: Any, given: Sequence[np.ndarray], plain: bool) -> None:
    """Makes the function private, and puts one beside it that calls it on arguments of known sizes."""
    from jaxlib.mlir.dialects import func

    types = main.type
    main.attributes["sym_name"] = ir.StringAttr.get(_INNER)
    main.attributes["sym_visibility"] = ir.StringAttr.get("private")
    outer = [ir.RankedTensorType.get(a.shape, _element(ir, t, plain)) for t, a in zip(types.inputs, given, strict=True)]
    made = [ir.RankedTensorType.get(t.shape, _element(ir, t, plain)) for t in types.results]
    with ir.InsertionPoint(module.body):
        caller = func.FuncOp(NAME, ir.FunctionType.get(outer, made), visibility="public")
        block = caller.add_entry_block()

    def converted(values: Any, to: Sequence[Any]) -> list[Any]:
        return [ir.Operation.create("stablehlo.convert", results=[t], operands=[v]).results[0] for v, t in zip(values, to, strict=True)]

    with ir.InsertionPoint(block):
        called = func.CallOp(main, converted(block.arguments, types.inputs))
        func.ReturnOp(converted(called.results, made) if plain else list(called.results))


def _element(ir: Any, type: Any, plain: bool) -> Any:
    """The type of an element; of f32 where numpy has none."""
    dtype = _dtype(type)
    if plain and dtype.is_complex:  # its bindings for Python end the process
        raise ValueError("it takes and gives no complex numbers")
    return ir.F32Type.get() if plain and dtype in _ODD else type.element_type


def _plain(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if DType.from_numpy(array.dtype) in _ODD else array


def _expose(ir: Any, main: Any) -> list[str]:
    """Has the function hand out every value that is the result of an operation; which ones."""
    block = main.entry_block
    *body, end = list(block.operations)
    found: list[tuple[str, Any]] = []
    for o in body:
        told = _name(o.location, None)
        if _RESULTS.fullmatch(told):
            found += [(names, result) for names, result in zip(told.split(";"), o.results, strict=False) if names]
    with ir.InsertionPoint(end), end.location:
        ir.Operation.create("func.return", operands=[value for _, value in found])
    end.operation.erase()
    made = ir.FunctionType.get(list(main.type.inputs), [value.type for _, value in found])
    main.attributes["function_type"] = ir.TypeAttr.get(made)
    if "res_attrs" in main.attributes:
        del main.attributes["res_attrs"]
    return [names for names, _ in found]


def _name(location: Any, number: int | None) -> str:
    """The name of a location; where it has none, that of an argument."""
    text = str(location)
    if text.startswith('loc("') and text.endswith(('")', "))")):
        inner = text[len('loc("') :]
        name, closed, behind = inner.partition('"')
        if closed and (behind == ")" or behind.startswith("(")):
            return name
    return "" if number is None else f"arg{number}"


def _dtype(type: Any) -> DType:
    word = str(type.element_type)
    if word not in DTYPES:
        raise ValueError(f"it has values of the type {type}")
    return DTYPES[word]


def _is_many(o: Any) -> bool:
    shape = o.results[0].type.shape
    return int(np.prod(shape)) > 1


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
