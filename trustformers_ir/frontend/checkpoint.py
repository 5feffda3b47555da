"""Hugging Face checkpoint folders: ``config.json`` and one or many ``*.safetensors`` to a module.

The weights stay where they are: the module's weights are views of the files, mapped while somebody looks at them. Names are brought into the form
that ``models/`` uses (prefixes such as ``bert.`` taken off), then the list of parameters that the architecture asks for is compared
with the files, and everything that is missing, unexpected or of a wrong shape or dtype is reported together.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trustformers_ir.frontend.folder import Folder, place_of_key
from trustformers_ir.frontend.safetensors import SafetensorsFile, open_safetensors
from trustformers_ir.frontend.sentence import sentence_settings
from trustformers_ir.frontend.stored import MAX_REPORTED, Stored, compare, described, traced
from trustformers_ir.ir.core import Module, Weight
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Parameters, Scope
from trustformers_ir.models.cached import CacheForm
from trustformers_ir.models.config import Fields
from trustformers_ir.models.family import Family, Model
from trustformers_ir.models.registry import find_family

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_INDEX = 32 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that fits its architecture, ready to be traced. ``config`` is its config.json, ``sizes`` what the family read in it. ``ignored``
    are names in the files that have no meaning for it."""

    folder: Path
    config: Mapping[str, Any]
    sizes: Any
    architecture: str
    model: Model
    weights: Mapping[str, Weight]
    ignored: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def module(self, generation: CacheForm | None = None) -> Module:
        """The traced model. ``generation``: a language model can also write text, and keeps what it has read so."""
        return traced(self.model, self.weights, self.folder.resolve().name, self.metadata, generation)


def load_checkpoint(
    folder: str | Path, *, dtype: DType | None = None, architecture: str | None = None, sentence: bool | None = None,
    generation: CacheForm | None = None,
) -> Module:
    """The module of a checkpoint folder; see :func:`open_checkpoint`."""
    return open_checkpoint(folder, dtype=dtype, architecture=architecture, sentence=sentence).module(generation)


def open_checkpoint(path: str | Path, *, dtype: DType | None = None, architecture: str | None = None, sentence: bool | None = None) -> Checkpoint:
    """The checkpoint in a folder, checked against its architecture.

    ``dtype`` is what the model computes in (f32); weights stored in another float dtype are cast in the graph. ``architecture`` overrides
    ``config["architectures"]``. ``sentence`` says whether to add the output ``sentence_embedding``: None does when the folder is a
    sentence-transformers one. Raises ``CompilerError`` with all problems.
    """
    folder = Folder(path)
    raw, text = _config(folder)
    where = _config_places(folder, text)
    family = _family(raw, where)
    problems = Collector()
    config = family.read_config(Fields(family.settings(raw), problems, where))
    settings = sentence_settings(folder) if sentence is None or sentence else None
    if sentence and settings is None:
        problems.add(Code.UNSUPPORTED_CONFIG, "the folder has no sentence-transformers settings", Where(file=folder.shown("modules.json")))
    chosen = _architecture(raw, family, architecture, settings is not None, where, problems)
    problems.check()
    files = _files(folder)
    stored = _stored(files, family, problems)
    problems.check()
    parameters = Parameters(available=stored)
    model = family.architectures[chosen](config, Scope(parameters, dtype=dtype or DType.f32))
    ignored = compare(parameters, stored, family, folder.path, _FITS, problems)
    if settings is not None and "attention_mask" not in model.inputs:
        message = f"a {family.model_type} reads no tokens, so there are none to pool into a sentence embedding"
        problems.add(Code.UNSUPPORTED_CONFIG, message, Where(file=folder.shown("modules.json")), "load it with sentence=False")
    problems.check()
    weights = {p.name: Weight(p.name, stored[p.name].type, stored[p.name].array) for p in parameters}
    metadata = described(family, chosen, model)
    if settings is not None:
        model, metadata = settings.added_to(model), metadata | settings.metadata
    return Checkpoint(folder.path, raw, config, chosen, model, weights, ignored, metadata)


# --- config.json -------------------------------------------------------------------------------------------------------------------


def _config(folder: Folder) -> tuple[dict[str, Any], str]:
    if not folder.has(CONFIG):
        help = "a checkpoint folder holds config.json, as save_pretrained() writes it"
        raise CompilerError.of(Code.CONFIG_MISSING, f"the folder '{folder.path}' holds no config.json", Where(file=str(folder.path)), help)
    raw, text = folder.json(CONFIG, Code.CONFIG_INVALID)
    if not isinstance(raw, dict):
        raise CompilerError.of(Code.CONFIG_INVALID, "config.json is not a JSON object", Where(file=folder.shown(CONFIG)))
    return raw, text


class _config_places:
    """The place of a field of config.json."""

    def __init__(self, folder: Folder, text: str) -> None:
        self.file, self.text = folder.shown(CONFIG), text

    def __call__(self, name: str | None) -> Where:
        return Where(file=self.file) if name is None else place_of_key(self.file, self.text, name)[0]


def _family(raw: Mapping[str, Any], where: _config_places) -> Family:
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        problem = "'model_type' is missing" if model_type is None else "'model_type' is not a name"
        raise CompilerError.of(Code.CONFIG_INVALID, problem, where("model_type"), 'it names the architecture, for instance "bert"')
    return find_family(model_type, where("model_type"))


def _architecture(raw: Mapping[str, Any], family: Family, asked: str | None, sentence: bool, where: _config_places, problems: Collector) -> str:
    """The first supported name in ``architectures``; the backbone when there is none, and for sentence encoders."""
    known = family.architectures
    if asked is not None:
        if asked in known:
            return asked
        problems.add(Code.UNSUPPORTED_CONFIG, f"{family.model_type} has no architecture '{asked}'", help=f"there are {', '.join(known)}")
        return family.backbone
    named = raw.get("architectures")
    if named is None or named == [] or sentence:
        return family.backbone
    if not isinstance(named, list) or not all(isinstance(n, str) for n in named):
        problems.add(Code.CONFIG_INVALID, "'architectures' is not a list of names", where("architectures"))
        return family.backbone
    found = [n for n in named if n in known]
    if not found:
        problems.add(
            Code.UNSUPPORTED_CONFIG,
            f"the architecture {', '.join(map(repr, named[:5]))} is not supported",
            where("architectures"),
            f"supported are {', '.join(known)}; load the encoder alone with architecture='{family.backbone}'",
        )
    return found[0] if found else family.backbone


# --- the files ---------------------------------------------------------------------------------------------------------------------


def _files(folder: Folder) -> list[tuple[str, SafetensorsFile]]:
    """The weight files: ``model.safetensors``, else those of the shard index, else all there are."""
    if folder.has(SINGLE):
        names = [SINGLE]
    elif folder.has(INDEX):
        return _shards(folder)
    else:
        names = folder.names(".safetensors")
    if not names:
        pickled = [n for n in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack") if folder.has(n)]
        help = f"{pickled[0]} is not read: convert it with transformers' save_pretrained()" if pickled else f"expected {SINGLE}"
        message = f"the folder '{folder.path}' holds no *.safetensors file"
        raise CompilerError.of(Code.WEIGHTS_NOT_FOUND, message, Where(file=str(folder.path)), help)
    return _opened(folder, names)


def _opened(folder: Folder, names: list[str]) -> list[tuple[str, SafetensorsFile]]:
    """All of the files, or all of their problems."""
    problems = Collector()
    out = []
    for name in names:
        try:
            out.append((name, open_safetensors(folder.file(name, Code.SHARD_INDEX), folder.shown(name))))
        except CompilerError as error:
            problems.extend(error.diagnostics)
    problems.check()
    return out


def _shards(folder: Folder) -> list[tuple[str, SafetensorsFile]]:
    """The files of the index, which has to say of every tensor the file that holds it."""
    place = folder.shown(INDEX)
    raw, text = folder.json(INDEX, Code.SHARD_INDEX, MAX_INDEX)
    table = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(v, str) for v in table.values()):
        raise CompilerError.of(Code.SHARD_INDEX, "the index has no 'weight_map' from names to files", Where(file=place), _INDEX_HELP)
    names = sorted(set(table.values()))
    problems = Collector()
    for name in names:
        try:
            if not folder.file(name, Code.SHARD_INDEX).is_file():
                problems.add(Code.SHARD_MISSING, f"the shard '{name}' is not there", place_of_key(place, text, _first(table, name))[0], _INDEX_HELP)
        except CompilerError as error:
            problems.extend(error.diagnostics)
    problems.check()
    files = dict(_opened(folder, names))
    wrong = [(tensor, name) for tensor, name in table.items() if tensor not in files[name]]
    for tensor, name in wrong[:MAX_REPORTED]:
        problems.add(
            Code.SHARD_INDEX, f"the index puts '{tensor}' into '{name}', which does not hold it", Where(file=place, tensor=tensor), _INDEX_HELP
        )
    for name, file in files.items():
        extra = [tensor for tensor in file if table.get(tensor) != name]
        for tensor in extra[:MAX_REPORTED]:
            message = f"'{name}' holds '{tensor}', which the index {'puts elsewhere' if tensor in table else 'does not mention'}"
            problems.add(Code.SHARD_INDEX, message, Where(file=place, tensor=tensor), _INDEX_HELP)
    problems.check()
    return list(files.items())


_FITS = "is config.json the one of this checkpoint?"
_INDEX_HELP = "index and shards belong together: fetch the checkpoint again"


def _first(table: Mapping[str, str], file: str) -> str:
    return next(tensor for tensor, name in table.items() if name == file)


def _stored(files: list[tuple[str, SafetensorsFile]], family: Family, problems: Collector) -> dict[str, Stored]:
    """All tensors by canonical name."""
    out: dict[str, Stored] = {}
    for _, file in files:
        for name, entry in file.items():
            found = Stored(name, entry.type, str(file.path), functools.partial(file.array, name))
            other = out.setdefault(family.canonical(name), found)
            if other is not found:
                message = f"'{name}' in '{file.path.name}' and '{other.name}' in '{Path(other.file).name}' are the same weight"
                problems.add(Code.WEIGHT_UNEXPECTED, message, found.where, "keep one of them")
    return out
