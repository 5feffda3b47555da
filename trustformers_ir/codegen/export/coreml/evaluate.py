"""Core ML packages in numpy: what is saved, the program and the file of its weights, is read back and executed op by op.

Apple's runtime is on Apple's systems only. Elsewhere this is the proof that a package says what it should: not that the runtime computes it so, nor
how fast. The program is read by ``coremltools`` (``milproto``), and each op is computed by the value inference that ``coremltools`` has for it;
where it has none, or a wrong or slow one, by the few lines of numpy below. What an op of f16 makes is rounded to f16; inside of it numbers are wider.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.coreml.package import coremltools_module
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where

Watch = Callable[[Any, np.ndarray], None]


def evaluate_package(path: str | os.PathLike[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a saved ``.mlpackage`` by name. ``inputs``: arrays by name, whose dtypes are converted to those of the package.

    ``UNREADABLE`` for what is no such package, ``INPUT_COUNT`` where the names differ, ``INPUT_SHAPE`` for a shape beyond what the package takes.
    """
    model, spec = _opened(path)
    ports = {i.name: i.type.multiArrayType for i in spec.description.input}
    if set(ports) != set(inputs):
        message = f"the inputs are {', '.join(ports)}, and {', '.join(inputs) or 'none'} were given"
        raise CompilerError.of(Code.INPUT_COUNT, message, Where(file=os.fspath(path)), "give each by its name")
    feeds = {}
    for name, given in inputs.items():
        array = np.asarray(given)
        array = array.reshape(1) if array.ndim == 0 else array
        sizes = [(r.lowerBound, r.upperBound) for r in ports[name].shapeRange.sizeRanges] or [(n, n) for n in ports[name].shape]
        if len(sizes) != array.ndim or any(not low <= n <= high for n, (low, high) in zip(array.shape, sizes, strict=True)):
            takes = ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in sizes)
            message = f"'{name}' is {list(array.shape)}, and the package takes {takes}"
            raise CompilerError.of(Code.INPUT_SHAPE, message, Where(file=os.fspath(path)), "give an array of such a shape")
        feeds[name] = array
    program = _read(path, model, spec, {name: a.shape for name, a in feeds.items()})
    function = program.functions["main"]
    found = run_function(function, {name: a.astype(_numpy(function.inputs[name])) for name, a in feeds.items()})
    return {o.name: found[o.name] for o in function.outputs}


def read_program(path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]] | None = None) -> Any:
    """The program of a package as ``coremltools`` has it; ``shapes``: those of its inputs, where they are dynamic."""
    return _read(path, *_opened(path), shapes or {})


def computes_in_f16(program: Any) -> bool:
    """Whether something in a program has 16 bits."""
    return any(_numpy(v) == np.float16 for f in program.functions.values() for o in f.operations for v in o.outputs if hasattr(v, "dtype"))


def _opened(path: str | os.PathLike[str]) -> tuple[Any, Any]:
    """A package and its specification."""
    ct = coremltools_module()
    try:
        model = ct.models.MLModel(os.fspath(path), skip_model_load=True)
        return model, model.get_spec()
    except Exception as error:  # of protobuf, of the file system, of the reader's checks
        raise _broken(path, error) from error


def _read(path: str | os.PathLike[str], model: Any, spec: Any, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """The program for inputs of certain shapes: the reader checks all types again, and knows sizes then."""
    from coremltools.converters.mil.frontend.milproto.load import load

    try:
        for port in spec.mlProgram.functions["main"].inputs:
            for dim, size in zip(port.type.tensorType.dimensions, shapes.get(port.name, ()), strict=False):
                dim.constant.size = size
        return load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
    except Exception as error:
        raise _broken(path, error) from error


def _broken(path: str | os.PathLike[str], error: Exception) -> CompilerError:
    why = str(error).strip() or type(error).__name__
    return CompilerError.of(Code.UNREADABLE, f"'{os.fspath(path)}' is no Core ML package: {why}", Where(file=os.fspath(path)), "write it again")


def run_function(function: Any, feeds: Mapping[str, np.ndarray], watch: Watch | None = None) -> dict[str, np.ndarray]:
    """The values of a function's outputs by name. ``watch`` sees each op with each of its results."""
    values: dict[str, np.ndarray] = dict(feeds)
    last = {x.name: n for n, op in enumerate(function.operations) for x in _reads(op)}
    kept = {o.name for o in function.outputs}
    for number, op in enumerate(function.operations):
        if op.op_type == "const":
            values[op.outputs[0].name] = op.outputs[0].val
            continue
        given = {k: _given(v, values) for k, v in op.inputs.items() if v is not None}
        with np.errstate(all="ignore"):
            results = _compute(op, given)
        for out, result in zip(op.outputs, results, strict=True):
            dtype = _numpy(out)
            with np.errstate(all="ignore"):
                made = np.asarray(result)
                values[out.name] = made if made.dtype == dtype else made.astype(dtype)
            if watch is not None:
                watch(op, values[out.name])
        for x in _reads(op):
            if last[x.name] == number and x.name not in kept:
                values.pop(x.name, None)
    return {name: values[name] for name in kept}


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


# --- what the value inference of coremltools lacks, or computes one number at a time -----------------------------------------


def _wide(x: Any) -> Any:
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype == np.float16 else x


def _matmul(x: Any, y: Any, transpose_x: Any = False, transpose_y: Any = False) -> Any:
    x, y = _wide(x), _wide(y)
    return np.matmul(np.swapaxes(x, -1, -2) if transpose_x else x, np.swapaxes(y, -1, -2) if transpose_y else y)


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    y = np.matmul(_wide(x), _wide(weight).T)
    return y if bias is None else y + _wide(bias)


def _conv(
    x: Any, weight: Any, bias: Any = None, strides: Any = None, pad_type: Any = "valid", pad: Any = None, dilations: Any = None, groups: Any = 1
) -> Any:  # fmt: skip
    """Windows of the padded input times the weights, group by group."""
    x, weight = _wide(x), _wide(weight)
    axes = x.ndim - 2
    strides = [1] * axes if strides is None else [int(s) for s in strides]
    dilations = [1] * axes if dilations is None else [int(d) for d in dilations]
    if pad_type not in ("custom", "valid"):
        raise CompilerError.of(Code.NOT_BUILT, f"the evaluator of Core ML packages does not know padding '{pad_type}'")
    pads = [int(p) for p in pad] if pad is not None and pad_type == "custom" else [0] * (2 * axes)
    x = np.pad(x, [(0, 0), (0, 0), *((pads[2 * a], pads[2 * a + 1]) for a in range(axes))])
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, 2 + axes)))
    picks = (slice(None), slice(None), *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    views, outputs, groups = views[picks], len(weight), int(groups)
    inner, kernel = "xyz"[:axes], "uvw"[:axes]
    made = [
        np.einsum(f"nc{inner}{kernel},oc{kernel}->no{inner}", part, w, optimize=True)
        for part, w in zip(np.split(views, groups, axis=1), np.split(weight, groups), strict=True)
    ]  # fmt: skip
    y = np.concatenate(made, axis=1)
    return y if bias is None else y + _wide(bias).reshape(outputs, *[1] * axes)


def _layer_norm(x: Any, axes: Any = None, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5) -> Any:
    x = _wide(x)
    over = tuple(int(a) for a in axes) if axes is not None else tuple(range(x.ndim))
    off = x - x.mean(over, keepdims=True)
    y = off / np.sqrt(np.mean(off * off, over, keepdims=True) + _wide(epsilon))
    y = y if gamma is None else y * _wide(gamma)
    return y if beta is None else y + _wide(beta)


def _softmax(x: Any, axis: Any = -1) -> Any:
    x = _wide(x)
    power = np.exp(x - x.max(axis=int(axis), keepdims=True))
    return power / power.sum(axis=int(axis), keepdims=True)


def _silu(x: Any) -> Any:
    x = _wide(x)
    return x / (1 + np.exp(-x))


def _reduced(how: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any, axes: Any = None, keep_dims: Any = False) -> Any:
        over = None if axes is None else tuple(int(a) for a in np.atleast_1d(axes))
        return np.asarray(how(_wide(x), axis=over, keepdims=bool(keep_dims)))

    return run


def _log_sum_exp(x: np.ndarray, axis: Any, keepdims: bool) -> Any:
    top = x.max(axis=axis, keepdims=True)
    total = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    return total if keepdims else np.squeeze(total, axis=axis)


def _placed(data: Any, indices: Any, updates: Any, mode: Any) -> Any:
    """``indices``: a tuple of arrays, one for each axis that is named."""
    y = np.array(data)
    how = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum, "sub": np.subtract, "div": np.divide}.get(mode)
    if how is None:
        y[indices] = updates
    else:
        how.at(y, indices, updates)
    return y


def _scatter_nd(data: Any, indices: Any, updates: Any, mode: Any = "add", validate_indices: Any = False) -> Any:
    return _placed(data, tuple(np.moveaxis(np.asarray(indices), -1, 0)), updates, mode)


def _scatter_along_axis(
    data: Any, indices: Any, updates: Any, axis: Any = 0, mode: Any = "add", validate_indices: Any = False
) -> Any:  # fmt: skip
    at = list(np.ix_(*(np.arange(n) for n in np.shape(indices))))
    at[int(axis)] = indices
    return _placed(data, tuple(at), updates, mode)


def _gather_nd(x: Any, indices: Any, batch_dims: Any = 0, validate_indices: Any = False) -> Any:
    batch, x, indices = int(batch_dims), np.asarray(x), np.asarray(indices)
    steps = indices.ndim - 1 - batch
    front = [np.arange(n).reshape(*(-1 if a == b else 1 for b in range(batch)), *[1] * steps) for a, n in enumerate(x.shape[:batch])]
    return np.asarray(x[(*front, *np.moveaxis(indices, -1, 0))])


def _top_k(
    x: Any, k: Any = 1, axis: Any = -1, ascending: Any = False, sort: Any = True, return_indices: Any = True, output_indices_dtype: Any = None
) -> Any:  # fmt: skip
    x, axis = np.asarray(x), int(axis)
    order = np.argsort(x if ascending else -_wide(x).astype(np.float64), axis=axis, kind="stable")
    order = np.take(order, np.arange(int(k)), axis=axis)
    found = np.take_along_axis(x, order, axis)
    return (found, order) if return_indices else (found,)


def _cumsum(x: Any, axis: Any = 0, exclusive: Any = False, reverse: Any = False) -> Any:
    x, axis = _wide(x), int(axis)
    x = np.flip(x, axis) if reverse else x
    y = np.cumsum(x, axis, dtype=x.dtype)
    y = y - x if exclusive else y
    return np.flip(y, axis) if reverse else y


def _gelu(x: Any, mode: Any = "EXACT") -> Any:
    x = _wide(x)
    if mode == "EXACT":
        return 0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / np.sqrt(2)))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-1.702 * x))


def _affine_dequantized(quantized_data: Any, zero_point: Any, scale: Any, axis: Any) -> Any:
    """``(q - zero) * scale``, with a scale for each position of an axis."""
    q = np.asarray(quantized_data)
    spread = [1] * q.ndim
    spread[int(axis)] = -1
    zero, scale = (np.asarray(v).reshape(spread) if np.ndim(v) else np.asarray(v) for v in (zero_point, scale))
    return (q.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)


NUMPY: Mapping[str, Callable[..., Any]] = {
    "matmul": _matmul, "linear": _linear, "conv": _conv, "layer_norm": _layer_norm, "softmax": _softmax, "silu": _silu, "gelu": _gelu,
    "reduce_sum": _reduced(np.sum), "reduce_mean": _reduced(np.mean), "reduce_max": _reduced(np.max), "reduce_min": _reduced(np.min),
    "reduce_prod": _reduced(np.prod), "reduce_log_sum_exp": _reduced(_log_sum_exp), "scatter_nd": _scatter_nd, "gather_nd": _gather_nd,
    "scatter_along_axis": _scatter_along_axis, "topk": _top_k, "constexpr_affine_dequantize": _affine_dequantized,
    "identity": lambda x: x, "cumsum": _cumsum,
    "reduce_argmax": lambda x, axis=-1, keep_dims=False, output_dtype=None: np.argmax(x, axis=int(axis), keepdims=bool(keep_dims)),
    "reduce_argmin": lambda x, axis=-1, keep_dims=False, output_dtype=None: np.argmin(x, axis=int(axis), keepdims=bool(keep_dims)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-_wide(x))),
    "softplus": lambda x: np.logaddexp(0, _wide(x)),
    "sigmoid_hard": lambda x, alpha=0.2, beta=0.5: np.clip(_wide(x) * _wide(alpha) + _wide(beta), 0, 1),
}  # fmt: skip
