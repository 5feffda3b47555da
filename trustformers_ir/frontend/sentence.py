"""The settings of sentence-transformers folders: which modules follow the encoder (``modules.json``), and how vectors are pooled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trustformers_ir.frontend.folder import Folder
from trustformers_ir.ir.diagnostics import Code, Collector, Where
from trustformers_ir.models.family import Model
from trustformers_ir.models.sentence import POOLINGS, SentenceEncoder

MODULES = "modules.json"


@dataclass(frozen=True)
class SentenceSettings:
    """How hidden states become a vector per text: names of ``POOLINGS``, and whether its length is then 1."""

    poolings: tuple[str, ...]
    normalize: bool
    max_length: int | None

    @property
    def metadata(self) -> dict[str, str]:
        """What a module says of them."""
        return {} if self.max_length is None else {"max_seq_length": str(self.max_length)}

    def added_to(self, encoder: Model) -> Model:
        """The encoder with the output ``sentence_embedding``."""
        return SentenceEncoder(encoder, self.poolings, self.normalize)


def sentence_settings(folder: Folder) -> SentenceSettings | None:
    """The settings; None when the folder is not a sentence-transformers one."""
    if not folder.has(MODULES):
        return None
    raw, _ = folder.json(MODULES, Code.CONFIG_INVALID)
    place = Where(file=folder.shown(MODULES))
    problems = Collector()
    steps: list[Mapping[str, Any]] = raw if isinstance(raw, list) and all(isinstance(m, dict) for m in raw) else []
    kinds = [str(m.get("type", "")).rpartition(".")[2] for m in steps]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        message = f"the modules of the sentence encoder are {' then '.join(kinds) or 'none'}"
        help = "supported are Transformer, Pooling and perhaps Normalize; load the encoder alone with sentence=False"
        problems.add(Code.UNSUPPORTED_CONFIG, message, place, help)
    problems.check()
    poolings = _poolings(folder, str(steps[1].get("path", "")), problems)
    problems.check()
    return SentenceSettings(poolings, len(kinds) == 3, _max_length(folder))


def _poolings(folder: Folder, path: str, problems: Collector) -> tuple[str, ...]:
    name = f"{path}/config.json" if path else "config.json"
    raw, _ = folder.json(name, Code.CONFIG_INVALID)
    place = Where(file=folder.shown(name))
    if not isinstance(raw, dict):
        problems.add(Code.CONFIG_INVALID, "the settings of the pooling are not a JSON object", place)
        return ()
    chosen = [key for key, value in raw.items() if key.startswith("pooling_mode_") and value is True]
    unknown = [key for key in chosen if key not in POOLINGS]
    if unknown or not chosen:
        message = f"the pooling {', '.join(unknown)} is not supported" if unknown else "no pooling is set"
        help = f"supported are {', '.join(POOLINGS)}; load the encoder alone with sentence=False"
        problems.add(Code.UNSUPPORTED_CONFIG, message, place, help)
    return tuple(chosen)


def _max_length(folder: Folder) -> int | None:
    """The number of tokens at which sentence-transformers cuts texts."""
    name = "sentence_bert_config.json"
    if not folder.has(name):
        return None
    raw, _ = folder.json(name, Code.CONFIG_INVALID)
    found = raw.get("max_seq_length") if isinstance(raw, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None
