"""Whatever can be given as a model, to its graph: joins the front ends. Behind ``compiler.py`` and ``exporter.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.frontend.checkpoint import load_checkpoint
from trustformers_ir.frontend.examples import Batch, read_examples
from trustformers_ir.frontend.factory import call_factory, is_factory
from trustformers_ir.frontend.gguf.container import GgufFile, open_gguf
from trustformers_ir.frontend.gguf.model import load_gguf
from trustformers_ir.frontend.gguf.vocabulary import tokenizer_json
from trustformers_ir.frontend.random_model import PREFIX, random_model
from trustformers_ir.frontend.safetensors import open_safetensors
from trustformers_ir.frontend.tokenizer import TextTokenizer, load_tokenizer, tokenizer_text
from trustformers_ir.frontend.trace import trace as trace_function
from trustformers_ir.ir.abi import TOKENIZER_KEY
from trustformers_ir.ir.core import Module, Weight
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import argument_names
from trustformers_ir.ir.progress import note
from trustformers_ir.ir.text import parse_module, read_module
from trustformers_ir.ir.types import TensorType
from trustformers_ir.models.cached import CacheForm
from trustformers_ir.runtime import artifact
from trustformers_ir.runtime.memory import typed_view


def trace(fn: Callable[..., Any], *specs: Any, **named: Any) -> Module:
    """The module of a function; arrays stand for their types."""
    return trace_function(fn, *map(_spec, specs), **{k: _spec(v) for k, v in named.items()})


def _spec(spec: Any) -> Any:
    return TensorType(spec.shape, DType.from_numpy(spec.dtype)) if isinstance(spec, np.ndarray) else spec



def to_module(
    model: Any,
    example_inputs: Any = None,
    dtype: DType | str | None = None,
    generation: CacheForm | None = None,
    dynamic: Sequence[str] | None = None,
) -> Module:
    """The graph of a model by its front end alone. A given ``Module`` is returned as it is. ``generation``: a language model can also write text, and
    keeps what it has read so. ``dynamic``: the dims that stay symbolic, for front ends that have to know (ONNX), or the axes
    that stay open (torch)."""
    if isinstance(model, (str, Path)):
        return _from_path(str(model), dtype_of(dtype), generation, example_inputs, dynamic)
    if isinstance(model, GgufFile):
        note("reading the model")
        return load_gguf(model, dtype=dtype_of(dtype), generation=generation)
    if dtype is not None:
        message = f"dtype chooses what a checkpoint computes in; {type(model).__name__} says that itself"
        raise CompilerError.of(Code.USAGE, message, help="leave it out, and write the casts into the model")
    if isinstance(model, Module):
        return model
    if is_torch(model):
        from trustformers_ir.frontend.torch_export.read import load_torch

        return load_torch(model, example_inputs, dynamic)
    if type(model).__name__ == "ModelProto":
        from trustformers_ir.frontend.onnx.model import load_onnx_model

        return load_onnx_model(model, None if example_inputs is None else examples_of(example_inputs), dynamic)
    if callable(model):
        specs = examples_of(example_inputs)
        return trace(model, **specs) if isinstance(specs, Mapping) else trace(model, *specs)
    message = f"{type(model).__name__} is not something that can be compiled"
    raise CompilerError.of(Code.USAGE, message, help="a checkpoint folder, a .tfir file, a module or a function")


def is_torch(model: Any) -> bool:
    """Whether it is a module or a program of torch, which is not imported to find out."""
    return any(c.__module__.partition(".")[0] == "torch" for c in type(model).__mro__)


def examples_of(given: Any) -> Mapping[str, Any] | Sequence[Any]:
    """Example inputs by name, or in order; a single one counts as a list of one."""
    if given is None:
        return ()
    return given if isinstance(given, (Mapping, tuple, list)) else (given,)


def dtype_of(dtype: DType | str | None) -> DType | None:
    if dtype is None or isinstance(dtype, DType):
        return dtype
    try:
        return DType.parse(dtype)
    except KeyError as error:
        raise CompilerError.of(Code.USAGE, f"there is no dtype {dtype!r}", help="f32, f64, bf16 or f16") from error


def opened(model: Any, example_inputs: Any = None) -> tuple[Any, Any]:
    """The model and its examples: a GGUF file opened, which is read for its graph and for its tokenizer; what a factory makes."""
    if isinstance(model, str) and is_factory(model):
        return call_factory(model, example_inputs)
    given = isinstance(model, (str, Path)) and Path(model).suffix == ".gguf" and Path(model).is_file()
    return (open_gguf(model) if given else model), example_inputs


def is_checkpoint(model: Any) -> bool:
    """Something whose numbers are read in a dtype that one chooses."""
    if isinstance(model, GgufFile):
        return True
    return isinstance(model, (str, Path)) and (str(model).startswith(PREFIX) or Path(model).is_dir() or Path(model).suffix == ".gguf")


def _from_path(
    name: str, dtype: DType | None, generation: CacheForm | None, example_inputs: Any = None, dynamic: Sequence[str] | None = None
) -> Module:
    if name.startswith(PREFIX):
        return random_model(name, dtype, generation)
    path = Path(name)
    if dtype is not None and not is_checkpoint(name):
        raise CompilerError.of(Code.USAGE, f"dtype chooses what a checkpoint computes in, and '{name}' is no checkpoint", help="leave it out")
    if not path.exists():
        raise CompilerError.of(Code.FILE_NOT_FOUND, f"'{name}' does not exist", Where(file=name), "look at the path")
    if path.is_dir():
        note("reading the checkpoint")
        return load_checkpoint(path, dtype=dtype, generation=generation)
    if path.suffix == ".gguf":
        return to_module(open_gguf(path), dtype=dtype, generation=generation)
    if path.suffix == ".tfir":
        return read_module(path, resolve=_beside(path))
    if path.suffix == ".tfc":
        found = artifact.inspect(path)
        return parse_module(found.graph, file=name, resolve=found.resolve)
    if path.suffix == ".onnx":
        note("reading the model")
        from trustformers_ir.frontend.onnx.model import load_onnx_model

        return load_onnx_model(path, None if example_inputs is None else examples_of(example_inputs), dynamic)
    help = "a checkpoint folder, a .gguf, .onnx, .tfir or .tfc file"
    raise CompilerError.of(Code.UNKNOWN_FORMAT, f"'{name}' is of no format that can be read", Where(file=name), help)


def _beside(path: Path) -> Callable[[str, TensorType], np.ndarray | None] | None:
    """Weights of ``m.tfir`` are looked for in ``m.safetensors``, by digest."""
    beside = path.with_suffix(".safetensors")
    if not beside.is_file():
        return None
    found: dict[str, np.ndarray] = {}

    def resolve(digest: str, type: TensorType) -> np.ndarray | None:
        if not found:
            file = open_safetensors(beside)
            for name in file:
                array = file.array(name)
                found[Weight(name, file[name].type, array).digest] = array
        return typed_view(found[digest], type) if digest in found else None

    return resolve


def check_weights(module: Module, file: str | None) -> None:
    missing = [w for w in module.weights.values() if not w.has_data]
    if missing:
        names = ", ".join(w.name for w in missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        message = f"the bytes of {len(missing)} weights are not there: {names}"
        help = "put the tensors into a .safetensors file of the same name beside the .tfir file"
        raise CompilerError.of(Code.WEIGHT_MISSING, message, Where(file=file, tensor=missing[0].name), help)


def tokenizer_of(model: Any) -> dict[str, str]:
    if isinstance(model, (str, Path)) and Path(model).is_dir():
        text = tokenizer_text(model)
    elif isinstance(model, GgufFile):
        text = tokenizer_json(model)
    else:
        text = None
    return {} if text is None else {TOKENIZER_KEY: text}


def batches_of(examples: Any, module: Module, model: Any) -> list[Batch]:
    """Examples as inputs of a module; texts by the tokenizer of the model that it is of, cut at its length."""
    types = {name: a.type for name, a in zip(argument_names(module.main), module.main.args, strict=True)}
    ids = types.get("input_ids")
    high = module.facts.bounds(ids.shape[-1])[1] if ids is not None and ids.rank else float("inf")

    def tokenizer() -> TextTokenizer | None:
        text = tokenizer_of(model)
        return load_tokenizer(text[TOKENIZER_KEY].encode(), str(model)) if text else None

    return read_examples(examples, types, None if high == float("inf") else int(high), tokenizer)
