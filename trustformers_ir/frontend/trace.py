"""``trace(fn, *specs)``: run a Python function once on symbolic tensors and keep the operations as a module.

    module = trace(lambda x, w: (x @ w.T).softmax(-1), f32["batch", 384], f32[10, 384])

A spec is a tensor type (``f32["batch", 384]``) or an example array, whose shape is then fixed; specs nest in tuples, lists and dicts, as the
function takes them. None and plain numbers are handed to the function as they are. Arguments carry the names of the function's parameters
(``cache_0``, ``cache_key`` inside of nests), outputs their key, field name or ``output_<i>``. Symbols are at least 1 unless ``facts`` says more.
"""

from __future__ import annotations

import inspect
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Union

import numpy as np

from trustformers_ir.frontend.names import unique_names
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Module, Value, Weight
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dims import SymbolFact, UndecidedDim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.region import Return
from trustformers_ir.ir.ops.shape import Reshape
from trustformers_ir.ir.parameters import Parameter
from trustformers_ir.ir.tensor import Tensor, as_tensor
from trustformers_ir.ir.tracing import Site, Trace, decided, is_internal, site_of, tracing
from trustformers_ir.ir.types import TensorType

FactLike = Union[SymbolFact, tuple[int, "int | None"], int]  # noqa: UP007
_NAME = re.compile(r"[^A-Za-z0-9_]")


def trace(
    fn: Callable[..., Any],
    *specs: Any,
    facts: Mapping[str, FactLike] | None = None,
    weights: Mapping[str, Any] | None = None,
    name: str | None = None,
    **named_specs: Any,
) -> Module:
    """The module whose function ``main`` computes what ``fn`` computes.

    ``facts`` says what is known of symbols: ``SymbolFact(1, 512)``, ``(1, 512)``, ``(1, None)``, or a single value. ``weights`` gives the arrays of
    parameters that ``fn`` asks for by name. Raises ``CompilerError``: at the user's line where there is one.
    """
    module = Module(_module_name(fn) if name is None else name)
    trace_into(module, "main", fn, *specs, facts=facts, weights=weights, **named_specs)
    return module


def trace_into(
    module: Module,
    function: str,
    fn: Callable[..., Any],
    *specs: Any,
    facts: Mapping[str, FactLike] | None = None,
    weights: Mapping[str, Any] | None = None,
    states: int = 0,
    **named_specs: Any,
) -> Function:
    """One more function of a module, which computes what ``fn`` computes and shares its weights. ``states``: so many of its last arguments are memory
    that outlives a call, so many of the last results of ``fn`` what is there afterwards. The rest is as in :func:`trace`."""
    positional = dict(zip(_positional_names(fn, specs, named_specs), specs, strict=True))
    leaves = [leaf for key, spec in (*positional.items(), *named_specs.items()) for leaf in _leaves(spec, key)]
    types = {path: _spec_type(path, spec) for path, spec in leaves if _is_tensor_spec(spec)}
    _declare(module, types, facts or {})
    names = list(unique_names(_identifier(path) for path in types))
    block = Block(list(types.values()), names)
    running = Trace(module, block, _as_weights(weights or {}))
    inputs = {path: Tensor(running, value) for path, value in zip(types, block.args, strict=True)}
    with tracing(running):
        args = [_rebuilt(spec, key, inputs) for key, spec in positional.items()]
        kwargs = {key: _rebuilt(spec, key, inputs) for key, spec in named_specs.items()}
        outputs = list(_outputs(_call(fn, args, kwargs)))
        results = [_named(running.builder, name, value, chosen) for name, value, chosen in outputs]
        running.builder.create(Return(), *results)  # no line of the user's asked for it
    return module.add_function(Function(function, block, states))


def _module_name(fn: Callable[..., Any]) -> str:
    found = getattr(fn, "__name__", type(fn).__name__)
    return _NAME.sub("_", found).strip("_") or "module"


# --- specs -------------------------------------------------------------------------------------------------------------------------


def _positional_names(fn: Callable[..., Any], specs: tuple[Any, ...], named: Mapping[str, Any]) -> list[str]:
    """The names of the parameters that the positional specs go to; ``args_0`` … for those of ``*args``."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return [f"arg{i}" for i in range(len(specs))]
    try:
        signature.bind(*specs, **named)
    except TypeError as error:
        message = f"the specs do not fit the function's signature {signature}: {error}"
        raise CompilerError.of(Code.TRACE_SPEC, message, help="give one spec for every parameter without a default") from None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in signature.parameters.values() if p.kind in kinds][: len(specs)]
    rest = next((p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_POSITIONAL), "args")
    return names + [f"{rest}.{i}" for i in range(len(specs) - len(names))]


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The leaves of nested tuples, lists and dicts with their paths."""
    if isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(tree, (tuple, list)):
        keys = getattr(tree, "_fields", range(len(tree)))
        for key, item in zip(keys, tree, strict=True):
            yield from _leaves(item, f"{path}.{key}")
    else:
        yield path, tree


def _rebuilt(tree: Any, path: str, leaves: Mapping[str, Any]) -> Any:
    """The tree with leaves replaced."""
    if isinstance(tree, Mapping):
        return {key: _rebuilt(item, f"{path}.{key}", leaves) for key, item in tree.items()}
    if isinstance(tree, (tuple, list)):
        keys = getattr(tree, "_fields", range(len(tree)))
        items = [_rebuilt(item, f"{path}.{key}", leaves) for key, item in zip(keys, tree, strict=True)]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return leaves.get(path, tree)


def _is_tensor_spec(spec: Any) -> bool:
    return not (spec is None or isinstance(spec, (bool, int, float, complex)))


def _spec_type(path: str, spec: Any) -> TensorType:
    if isinstance(spec, TensorType):
        return spec
    help = 'a spec is a type such as f32["batch", 384], or an example array'
    if isinstance(spec, DType):
        raise CompilerError.of(Code.TRACE_SPEC, f"the spec of '{path}' is a dtype without a shape: {spec}", help=f"{spec}[()] is a scalar")
    if not hasattr(spec, "__array__"):
        message = f"the spec of '{path}' is {type(spec).__name__} {spec!r:.60}, which is no tensor type"
        raise CompilerError.of(Code.TRACE_SPEC, message, help=help)
    array = np.asarray(spec)
    try:
        return TensorType(array.shape, DType.from_numpy(array.dtype))
    except KeyError:
        message = f"the example given for '{path}' has dtype {array.dtype}, which is no tensor's"
        raise CompilerError.of(Code.TRACE_SPEC, message, help=help) from None


def _declare(module: Module, types: Mapping[str, TensorType], facts: Mapping[str, FactLike]) -> None:
    """The symbols of the specs, in order of appearance, with what is known of them."""
    for type in types.values():
        for dim in type.shape:
            for symbol in sorted(TensorType((dim,), type.dtype).symbols):
                module.facts.declare(symbol)
    for symbol, fact in facts.items():
        if symbol not in module.facts.symbols:
            known = list(module.facts.symbols)
            near = get_close_matches(symbol, known, 1)
            help = f"did you mean '{near[0]}'?" if near else f"the symbols are {', '.join(known) or 'none'}"
            raise CompilerError.of(Code.TRACE_SPEC, f"a fact is given for '{symbol}', which is no symbol of the specs", help=help)
        try:
            module.facts.declare(symbol, _fact(fact))
        except (TypeError, ValueError) as error:
            message = f"the fact of symbol '{symbol}': {error}"
            raise CompilerError.of(Code.TRACE_SPEC, message, help="a fact is SymbolFact(low, high, divisor) or (low, high)") from None


def _fact(fact: FactLike) -> SymbolFact:
    if isinstance(fact, SymbolFact):
        return fact
    return SymbolFact(fact, fact) if isinstance(fact, int) else SymbolFact(*fact)


def _as_weights(weights: Mapping[str, Any]) -> dict[str, Weight]:
    out: dict[str, Weight] = {}
    for name, given in weights.items():
        if isinstance(given, Weight):
            out[name] = given
            continue
        array = np.asarray(given)
        try:
            dtype = DType.from_numpy(array.dtype)
        except KeyError:
            message = f"weight '{name}' has dtype {array.dtype}, which is no tensor's"
            raise CompilerError.of(Code.WEIGHT_DTYPE, message, Where(tensor=name)) from None
        out[name] = Weight(name, TensorType(array.shape, dtype), array)
    return out


# --- running the function ----------------------------------------------------------------------------------------------------------


def _call(fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """What ``fn`` returns. An exception of its own becomes an error at the line that raised it."""
    try:
        return fn(*args, **kwargs)
    except CompilerError:
        raise
    except UndecidedDim as error:
        raise decided(_blamed(error), error) from error
    except RecursionError as error:
        raise _blamed(error).error(Code.TRACE_FAILED, "the traced function recursed too deeply") from error
    except Exception as error:
        site = _blamed(error)
        if isinstance(error, AttributeError) and isinstance(error.obj, Tensor):
            near = get_close_matches(error.name or "", dir(Tensor), 1)
            help = f"did you mean '{near[0]}'?" if near else "the methods are those of trustformers_ir.ir.tensor.Tensor"
            raise site.error(Code.TRACE_UNSUPPORTED, f"a symbolic tensor has no '{error.name}'", help) from error
        message = f"the traced function raised {type(error).__name__}: {error}"
        help = "inside of a traced function use methods of its tensors, and trustformers_ir.ir.functional; sizes are in x.shape"
        raise site.error(Code.TRACE_FAILED, message, help) from error


def _blamed(error: BaseException) -> Site:
    """The innermost line of user code in a traceback: not ours, and if possible not of an installed library."""
    found: list[tuple[bool, Site]] = []
    at = error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        if not is_internal(code.co_filename):
            found.append((code.co_filename.startswith(_LIBRARIES) or code.co_filename.startswith("<frozen"), site_of(code, at.tb_lineno)))
        at = at.tb_next
    own = [site for library, site in found if not library]
    return own[-1] if own else found[-1][1] if found else Site(None)


_LIBRARIES = tuple({sysconfig.get_path(p) for p in ("stdlib", "platstdlib", "purelib", "platlib")})


# --- results -----------------------------------------------------------------------------------------------------------------------


def _named(builder: Builder, name: str, value: Value, chosen: bool) -> Value:
    """A result under its name. What has another name already, as an input or as another result, is passed on under the one that was ``chosen`` for
    it (passes see that it is the same); where nobody chose one it keeps its own."""
    if value.block is None and not value.name:
        value.name = name
    elif chosen and value.name != name:
        value = builder(Reshape(value.type.shape), value)
        value.name = name
    return value


def _outputs(results: Any) -> Iterator[tuple[str, Value, bool]]:
    """The tensors that the function returned, by name, and whether the function chose the name; None is left out."""
    single = not isinstance(results, (tuple, list, Mapping))
    leaves = [(path.removeprefix("."), leaf) for path, leaf in _leaves(results, "") if leaf is not None]
    names = ["output" if single else _identifier(f"output_{path}" if path[:1].isdigit() else path) for path, _ in leaves]
    for name, (path, leaf) in zip(unique_names(names), leaves, strict=True):
        if not (isinstance(leaf, (Tensor, Parameter, np.ndarray, np.generic, bool, int, float, complex))):
            place = f"the result '{path}' of the traced function" if path else "the result of the traced function"
            message = f"{place} is {type(leaf).__name__} {leaf!r:.60}, which is no tensor"
            raise CompilerError.of(Code.TRACE_RESULT, message, help="return a tensor, or tuples, lists and dicts of tensors")
        yield name, as_tensor(leaf).value, not single and not path[:1].isdigit()
    if not leaves:
        raise CompilerError.of(Code.TRACE_RESULT, "the traced function returned no tensor", help="return what it computes")


def _identifier(path: str) -> str:
    name = _NAME.sub("_", path)
    return f"_{name}" if not name or name[0].isdigit() else name
