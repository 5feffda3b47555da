"""From models to what a GGUF file holds: the way of ``model.py`` backwards.

    checkpoint folder, random:…  --family's config--> keys (outward_keys.py)  --architectures.py--> names, order of rows
    tokenizer.json               --outward_vocabulary.py--> tokens, merges or scores
    GGUF file                    --> its keys, its tensors, byte by byte

Whatever a file cannot say is an error: the keys are read again, and have to give the config that they were made of (``outward_keys.py``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.frontend.checkpoint import open_checkpoint
from trustformers_ir.frontend.folder import Folder
from trustformers_ir.frontend.gguf.architectures import ARCHITECTURES, FALCON_TWO_NORMS, LLAMA, MIXTRAL, GgufArchitecture, fits
from trustformers_ir.frontend.gguf.container import GgufFile, open_gguf
from trustformers_ir.frontend.gguf.embedding import encoder_keys
from trustformers_ir.frontend.gguf.metadata import ARRAY, BOOL, SCALARS, Texts, Value
from trustformers_ir.frontend.gguf.model import paired_rows, parted_rows
from trustformers_ir.frontend.gguf.outward_keys import checked_keys, factor_tensors
from trustformers_ir.frontend.gguf.outward_vocabulary import vocabulary_keys
from trustformers_ir.frontend.random_model import PREFIX, untraced_model
from trustformers_ir.frontend.sentence import SentenceSettings, sentence_settings
from trustformers_ir.ir.core import Weight
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.gguf_content import TEXT, Content, ContentTensor, Key

SPLIT = "split."  # keys of one file among several
_KINDS = {DType.f32: "F32", DType.f16: "F16", DType.bf16: "BF16", DType.f64: "F32"}
#: parameters apart of which files hold all together: norms of heads, matrices of experts
_ONE_OF_SEVERAL = re.compile(r"(.+)\.norms\.\d+(\.weight)|(.+\.experts)\.\d+(\.w\d\.weight)")


def content_of(source: str | Path) -> Content:
    """What a GGUF file of that model holds: of a checkpoint folder, a ``random:`` model, or a GGUF file. Raises ``CompilerError`` with all
    problems."""
    name = str(source)
    if name.startswith(PREFIX):
        return _random(name)
    path = Path(source)
    if path.is_dir():
        return _checkpoint(path)
    if not path.exists():
        raise CompilerError.of(Code.FILE_NOT_FOUND, f"'{name}' does not exist", Where(file=name), "look at the path")
    if path.suffix != ".gguf":
        help = "give a checkpoint folder, random:<model_type>, or a .gguf file"
        raise CompilerError.of(Code.CANNOT_EXPORT, f"'{name}' cannot be written as a GGUF file", Where(file=name), help)
    return _copied(open_gguf(path))


# --- GGUF to GGUF --------------------------------------------------------------------------------------------------------


def _copied(file: GgufFile) -> Content:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise CompilerError.of(Code.GGUF_METADATA, "general.architecture is missing, or no text", Where(file=str(file)), "is it the file of a model?")
    keys: dict[str, Key] = {}
    for name, value in file.metadata.items():
        if name == "general.architecture" or name.startswith(SPLIT):
            continue
        key = _key(value, file.types[name])
        if key is None:
            message = f"'{name}' is an array of arrays, which cannot be written"
            raise CompilerError.of(Code.CANNOT_EXPORT, message, Where(file=str(file)), "leave the key out of the file")
        if key.type != ARRAY or key.value:  # an empty array says nothing, and the package writes none
            keys[name] = key
    return Content(architecture, keys, [ContentTensor(t.name, t.kind.name, t.shape, t.blocks) for t in file.values()])


def _key(value: Value, type: int) -> Key | None:
    """A value as it was read, with its type; None for arrays of arrays."""
    if type != ARRAY:
        return Key(type, value)
    if isinstance(value, Texts):
        return Key(ARRAY, [value.bytes(i) for i in range(len(value))], TEXT)
    if not isinstance(value, np.ndarray):
        return None
    if value.dtype == np.bool_:
        return Key(ARRAY, value.tolist(), BOOL)
    letter = {np.dtype(f"<{letter}"): n for n, letter in SCALARS.items() if n != BOOL}
    return Key(ARRAY, value.tolist(), letter[value.dtype])


# --- models to GGUF ------------------------------------------------------------------------------------------------------


def _architecture(model_type: object, place: Where) -> GgufArchitecture:
    """The row of a family; Mistral is a LLaMA there, as far as it has no window."""
    named = {a.model_type: a for a in ARCHITECTURES.values()} | {"mistral": LLAMA, MIXTRAL.model_type: MIXTRAL}
    if not isinstance(model_type, str) or model_type not in named:
        message = f"GGUF files of the model_type {model_type!r} are not written"
        raise CompilerError.of(Code.CANNOT_EXPORT, message, place, f"these can be written: {', '.join(sorted(named))}")
    return named[model_type]


def _random(spec: str) -> Content:
    place = Where(file=spec)
    table = _architecture(spec.removeprefix(PREFIX).partition("?")[0], place)
    made = untraced_model(spec, missing=_head_of(table, spec.removeprefix(PREFIX).partition("?")[0]))
    return _content(made.config, made.weights, table, f"random_{made.model_type}", place, None, None)


def _head_of(table: GgufArchitecture, model_type: str) -> str:
    return "MistralForCausalLM" if model_type == "mistral" else table.architecture


def _checkpoint(path: Path) -> Content:
    place = Where(file=str(path))
    folder = Folder(path)
    raw = folder.json("config.json", Code.CONFIG_INVALID)[0] if folder.has("config.json") else {}
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    named = model_type is None or _architecture(model_type, place)  # what is wrong with the folder is for the next line to say
    settings = sentence_settings(folder) if isinstance(named, GgufArchitecture) and named.encodes else None
    head = _head_of(named, str(model_type)) if isinstance(named, GgufArchitecture) and (settings is not None or not named.encodes) else None
    found = open_checkpoint(path, architecture=head, sentence=False)
    return _content(found.sizes, found.weights, _architecture(model_type, place), path.resolve().name, place, folder, settings)


def _content(
    config: Any, weights: Mapping[str, Weight], table: GgufArchitecture, name: str, place: Where, folder: Folder | None,
    settings: SentenceSettings | None,
) -> Content:  # fmt: skip
    table = FALCON_TWO_NORMS if table.name == "falcon" and config.norms == 2 else table
    tensors = [*factor_tensors(config), *_tensors(config, weights, table, place)]
    keys = {"general.type": Key.of("model"), "general.name": Key.of(name)}
    keys |= checked_keys(config, table, tensors, place)
    keys |= vocabulary_keys(folder, config.vocab_size)
    keys |= encoder_keys(config.type_vocab_size, settings, table.name, place) if table.encodes else {}
    return Content(table.name, keys, tensors)


def _tensors(config: Any, weights: Mapping[str, Weight], table: GgufArchitecture, place: Where) -> list[ContentTensor]:
    """All parameters as the tensors that they are, in the order in which the model asks for them."""
    problems = Collector()
    parts: dict[str, list[Weight]] = {}
    for name, weight in weights.items():
        one = _ONE_OF_SEVERAL.fullmatch(name)
        parts.setdefault("".join(part for part in one.groups() if part) if one else name, []).append(weight)
    out = []
    for name, together in parts.items():
        tensor, dtype = table.tensor(name), together[0].type.dtype
        if tensor is None or dtype not in _KINDS:
            reason = f"no tensor of the architecture {table.name}" if tensor is None else f"stored as {dtype}"
            problems.add(Code.CANNOT_EXPORT, f"the weight '{name}' is {reason}", Where(file=place.file, tensor=name), "f32, f16 and bf16 are written")
            continue
        turned, raised = fits(name, table.columns), fits(name, table.raised)
        found = _Parameter(together, name not in weights, turned, raised, functools.partial(_order, name, config, table))
        as_stored = ContentTensor(tensor, _KINDS[dtype], found.shape, found.rows)
        wide = not as_stored.is_matrix or dtype is DType.f64
        out.append(ContentTensor(tensor, "F32", found.shape, replace(found, wide=True).rows) if wide else as_stored)
    problems.check()
    return out


@dataclass(frozen=True)
class _Parameter:
    """A parameter as it lies in a file. ``stacked``: several become one; ``turned``: its columns are rows there; ``raised``: 1 is added to it;
    ``order`` makes that of its rows, None where they stay; ``wide``: it is f32 there, whatever it is here."""

    weights: Sequence[Weight]
    stacked: bool
    turned: bool
    raised: bool
    order: Callable[[int], np.ndarray | None]
    wide: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        own = tuple(n for n in self.weights[0].type.shape if isinstance(n, int))
        return (len(self.weights), *own) if self.stacked else tuple(reversed(own)) if self.turned else own

    def rows(self) -> np.ndarray:
        """``u8[rows, bytes]``."""
        found = np.stack([w.data for w in self.weights]) if self.stacked else self.weights[0].data
        found = found.astype(np.float32) if self.wide else found
        found = found.T if self.turned else found
        order = self.order(found.shape[0])
        found = found if order is None else found[order]
        found = found + found.dtype.type(1) if self.raised else found
        return np.ascontiguousarray(found).view(np.uint8).reshape(prod(found.shape[:-1]), -1)


def _order(name: str, config: Any, table: GgufArchitecture, rows: int) -> np.ndarray | None:
    """The inverse of the order in which the rows of a parameter are read; None where they stay."""
    heads = getattr(config, "num_attention_heads", 0)
    key_heads = getattr(config, "num_key_value_heads", getattr(config, "num_kv_heads", 0))
    if fits(name, table.paired):
        return np.argsort(paired_rows(rows, key_heads if ".k_proj." in name else heads))
    if fits(name, table.parted):
        return np.argsort(parted_rows(rows, heads, key_heads))
    return None
