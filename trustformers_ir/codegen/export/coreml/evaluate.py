"""Core ML packages in numpy: what is saved, the program and the file of its weights, is read back and executed op by op.

Apple's runtime is on Apple's systems only. Elsewhere this is the proof that a package says what it should: not that the runtime computes it so, nor
how fast. The program is read by ``coremltools`` (``milproto``), and each op is computed by the value inference that ``coremltools`` has for it;
where it has none, or a wrong or slow one, by a few lines of numpy (``numpy_ops.py``). What an op of f16 makes is rounded to f16; inside of it numbers
are wider.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.coreml.numpy_ops import NUMPY
from trustformers_ir.codegen.export.coreml.package import coremltools_module
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where

Watch = Callable[[Any, np.ndarray], None]
State = dict[str, np.ndarray]


class Package:
    """A saved ``.mlpackage`` that is open. ``UNREADABLE`` for what is no such package."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        ct = coremltools_module()
        self.path = os.fspath(path)
        try:
            self._model = ct.models.MLModel(self.path, skip_model_load=True)
            self._spec = self._model.get_spec()
        except Exception as error:  # of protobuf, of the file system, of the reader's checks
            raise self._broken(error) from error
        self._ports = {i.name: i.type.multiArrayType for i in self._spec.description.input}
        self._states = {i.name: tuple(i.type.stateType.arrayType.shape) for i in self._spec.description.state}
        self._constants: State = {}  # of weights in codes, the numbers

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of what each call takes."""
        return tuple(self._ports)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What is said of the model."""
        return dict(self._spec.description.metadata.userDefined)

    def new_state(self) -> State:
        """What calls keep between them, by name, as it is before the first: zeros."""
        return {name: np.zeros(shape, np.float16) for name, shape in self._states.items()}

    def run(self, inputs: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        """The outputs by name. ``inputs``: arrays by name, whose dtypes are converted to those of the package. ``state``: of :meth:`new_state`,
        changed by each call; without one, a call begins with a new one.

        ``INPUT_COUNT`` where the names differ, ``INPUT_SHAPE`` for a shape beyond what the package takes.
        """
        if set(self._ports) != set(inputs):
            message = f"the inputs are {', '.join(self._ports)}, and {', '.join(inputs) or 'none'} were given"
            raise CompilerError.of(Code.INPUT_COUNT, message, Where(file=self.path), "give each by its name")
        feeds = {name: self._fitting(name, np.asarray(given)) for name, given in inputs.items()}
        function = self._program_for({name: a.shape for name, a in feeds.items()}).functions["main"]
        feeds = {name: a.astype(_numpy(function.inputs[name])) for name, a in feeds.items()}
        found = run_function(function, feeds, states=self.new_state() if state is None else state, constants=self._constants)
        return {o.name: found[o.name] for o in function.outputs}

    def _fitting(self, name: str, array: np.ndarray) -> np.ndarray:
        array = array.reshape(1) if array.ndim == 0 else array
        port = self._ports[name]
        sizes = [(r.lowerBound, r.upperBound) for r in port.shapeRange.sizeRanges] or [(n, n) for n in port.shape]
        if len(sizes) != array.ndim or any(not low <= n <= high for n, (low, high) in zip(array.shape, sizes, strict=True)):
            takes = ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in sizes)
            message = f"'{name}' is {list(array.shape)}, and the package takes {takes}"
            raise CompilerError.of(Code.INPUT_SHAPE, message, Where(file=self.path), "give an array of such a shape")
        return array

    @functools.cached_property
    def program(self) -> Any:
        """The program as ``coremltools`` has it; its reader checks the types of all ops again."""
        return self._loaded(self._spec)

    def _program_for(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """The program; one for inputs of these shapes alone where the reader cannot compare sizes that are not known."""
        try:
            return self.program
        except CompilerError:
            spec = type(self._spec)()
            spec.CopyFrom(self._spec)
            for port in spec.mlProgram.functions["main"].inputs:
                for dim, size in zip(port.type.tensorType.dimensions, shapes.get(port.name, ()), strict=False):
                    dim.constant.size = size
            return self._loaded(spec)

    def _loaded(self, spec: Any) -> Any:
        from coremltools.converters.mil.frontend.milproto.load import load

        try:
            return load(spec, specification_version=spec.specificationVersion, file_weights_dir=self._model.weights_dir)
        except Exception as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> CompilerError:
        why = str(error).strip() or type(error).__name__
        return CompilerError.of(Code.UNREADABLE, f"'{self.path}' is no Core ML package: {why}", Where(file=self.path), "write it again")


def evaluate_package(path: str | os.PathLike[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of one call of a saved ``.mlpackage``, by name: see :class:`Package`."""
    return Package(path).run(inputs)


def read_program(path: str | os.PathLike[str]) -> Any:
    """The program of a package as ``coremltools`` has it."""
    return Package(path).program


def computes_in_f16(program: Any) -> bool:
    """Whether something in a program has 16 bits."""
    return any(_numpy(v) == np.float16 for f in program.functions.values() for o in f.operations for v in o.outputs if hasattr(v, "dtype"))


def run_function(
    function: Any, feeds: Mapping[str, np.ndarray], watch: Watch | None = None, states: State | None = None, constants: State | None = None
) -> dict[str, np.ndarray]:  # fmt: skip
    """The values of a function's outputs by name. ``watch`` sees each op with each of its results. ``states``: what is kept between calls, which is
    changed. ``constants``: the numbers of weights in codes, filled where they are not known yet."""
    values: dict[str, np.ndarray] = dict(feeds)
    states, constants = {} if states is None else states, {} if constants is None else constants
    last = {x.name: n for n, op in enumerate(function.operations) for x in _reads(op)}
    kept = {o.name for o in function.outputs}
    for number, op in enumerate(function.operations):
        name = op.outputs[0].name
        if op.op_type == "const":
            values[name] = op.outputs[0].val
            continue
        if op.op_type == "read_state":
            results: tuple[Any, ...] = (states[op.input.name],)
        elif op.op_type == "coreml_update_state":
            states[op.state.name] = np.array(values[op.value.name])
            results = (states[op.state.name],)
        elif name in constants:
            results = (constants[name],)
        else:
            given = {k: _given(v, values) for k, v in op.inputs.items() if v is not None}
            with np.errstate(all="ignore"):
                results = _compute(op, given)
        for out, result in zip(op.outputs, results, strict=True):
            dtype = _numpy(out)
            with np.errstate(all="ignore"):
                made = np.asarray(result)
                values[out.name] = made if made.dtype == dtype else made.astype(dtype)
            _check_shape(out, values[out.name])
            if watch is not None:
                watch(op, values[out.name])
        if op.op_type.startswith("constexpr"):
            constants[name] = values[name]
        for x in _reads(op):
            if last[x.name] == number and x.name not in kept:
                values.pop(x.name, None)
    return {name: values[name] for name in kept}


def _check_shape(out: Any, made: np.ndarray) -> None:
    """What an op makes has the shape that the program says, as far as that is known before it runs."""
    said = out.shape if out.rank else ()
    if len(said) != made.ndim or any(isinstance(n, (int, np.integer)) and n != m for n, m in zip(said, made.shape, strict=True)):
        message = f"'{out.name}' of a Core ML package is {list(made.shape)}, and its program says {list(map(str, said))}"
        raise CompilerError.of(Code.CHECK_FAILED, message)


def _reads(op: Any) -> list[Any]:
    flat: list[Any] = []
    for v in op.inputs.values():
        flat += list(v) if isinstance(v, (list, tuple)) else [v]
    return [v for v in flat if v is not None]


def _given(v: Any, values: Mapping[str, np.ndarray]) -> Any:
    if isinstance(v, (list, tuple)):
        return [_given(x, values) for x in v]
    return values.get(v.name, v.val)


def _numpy(v: Any) -> Any:
    from coremltools.converters.mil.mil import types

    return types.nptype_from_builtin(v.dtype)


def _compute(op: Any, given: dict[str, Any]) -> tuple[Any, ...]:
    found = NUMPY.get(op.op_type)
    if found is not None:
        made = found(**given)
        return made if isinstance(made, tuple) else (made,)
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import Function

    with Function({}, op.opset_version):  # of nothing: every op is of constants
        result = getattr(mb, op.op_type)(**given)
    results = result if isinstance(result, (list, tuple)) else (result,)
    if any(r.val is None for r in results):
        message = f"the evaluator of Core ML packages does not know '{op.op_type}'"
        raise CompilerError.of(Code.NOT_BUILT, message, help="docs/coreml.md says what it knows")
    return tuple(r.val for r in results)
