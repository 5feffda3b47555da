"""The tokenizer that travels in the metadata of a GGUF file, as the text of a ``tokenizer.json`` for the library ``tokenizers``.

Three models of tokenizers are read. ``gpt2`` is byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): tokens and merges are in the file, and
``tokenizer.ggml.pre`` names the rule by which text is cut before (the table ``CUTS``; rules are those of the published tokenizers). ``llama`` is BPE
as SentencePiece makes it (Kudo and Richardson 2018): merges follow from the scores of tokens, and a character without a token becomes bytes. ``bert``
is WordPiece (``wordpiece.py``). Control tokens stand for themselves wherever they occur in a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.frontend.gguf import wordpiece
from trustformers_ir.frontend.gguf.container import GgufFile
from trustformers_ir.frontend.gguf.metadata import Texts, Value
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where

PREFIX = "tokenizer.ggml."
NO_VOCABULARY = "none"  # the model of a file without a tokenizer
UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6  # types of tokens
SPACE = "\u2581"  # what SentencePiece writes for a space

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PATH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(behind: str, digits: str) -> str:
    """Words whose capitals stand at the beginning, then so many digits, then the rest."""
    before = r"[^\r\n\p{L}\p{N}]?"
    return rf"{before}{_UPPER}*{_LOWER}+{behind}|{before}{_UPPER}+{_LOWER}*{behind}|{digits}|{_PATH}"


@dataclass(frozen=True)
class Cut:
    """How text is cut into words: by each expression in turn. ``whole``: a word that is a token is not made of merges. ``begins``: a text begins
    with the token for that, where the file does not say."""

    expressions: tuple[str, ...]
    whole: bool = False
    begins: bool = False


_DIGITS = Cut((r"\p{N}", _WORDS))
_GPT2 = Cut((_WORDS,))
_LLAMA3 = Cut((rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",))
_QWEN2 = Cut((rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",))
_LLAMA3_WHOLE = Cut(_LLAMA3.expressions, whole=True, begins=True)

CUTS: Mapping[str, Cut] = {
    "default": Cut((r"[\p{P}\$\+<=>\^~\|]+", _WORDS, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "trillion"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3"), _LLAMA3_WHOLE),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _LLAMA3),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"), _QWEN2),
    "falcon": Cut((r"[\p{P}\$\+<=>\^~\|`]+", _WORDS, r"[0-9][0-9][0-9]")),
    "tekken": Cut((_cased("", r"\p{N}"),), whole=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Cut((_cased(rf"{_SHORT}?", r"\p{N}{1,3}"),))),
}


def tokenizer_json(file: GgufFile) -> str | None:
    """The tokenizer of a file; None when it has none. ``TOKENIZER_INVALID`` when its parts do not fit, or its kind is not known."""
    if file.metadata.get(f"{PREFIX}model", NO_VOCABULARY) == NO_VOCABULARY:
        return None
    return json.dumps(_Vocabulary(file).tokenizer(), ensure_ascii=False)


class _Vocabulary:
    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.tokens = self.texts("tokens")
        self.kinds = self.numbers("token_type", "iu")
        self.ids: dict[str, int] = {}
        for i, token in enumerate(self.tokens):
            if self.ids.setdefault(token, i) != i:
                raise self.error(f"the token {token!r} is there twice, as {self.ids[token]} and as {i}")

    # -- values of the metadata

    def error(self, message: str, help: str = "") -> CompilerError:
        help = help or "the converter wrote it wrong: convert the model again"
        return CompilerError.of(Code.TOKENIZER_INVALID, f"the tokenizer in the file is broken: {message}", Where(file=str(self.file.path)), help)

    def find(self, name: str, missing: Value) -> Value:
        return self.file.metadata.get(f"{PREFIX}{name}", missing)

    def texts(self, name: str) -> list[str]:
        found = self.find(name, False)
        if not isinstance(found, Texts):
            raise self.error(f"{PREFIX}{name} is no array of texts")
        return list(found)

    def numbers(self, name: str, letters: str) -> np.ndarray | None:
        """An array of as many numbers as there are tokens; None where there is none."""
        found = self.file.metadata.get(f"{PREFIX}{name}")
        if found is None:
            return None
        if not isinstance(found, np.ndarray) or found.dtype.kind not in letters or len(found) != len(self.tokens):
            raise self.error(f"{PREFIX}{name} is no array of {len(self.tokens)} numbers, one for each token")
        return found

    def flag(self, name: str, missing: bool) -> bool:
        found = self.find(name, missing)
        if not isinstance(found, bool):
            raise self.error(f"{PREFIX}{name} is {found!r}, neither true nor false")
        return found

    def special(self, name: str) -> int | None:
        """The id of a token with a role; None where there is none."""
        found = self.file.metadata.get(f"{PREFIX}{name}_token_id")
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < len(self.tokens):
            raise self.error(f"{PREFIX}{name}_token_id is {found!r}, and there are {len(self.tokens)} tokens")
        return found

    def of_kind(self, *kinds: int) -> list[int]:
        return [] if self.kinds is None else [int(i) for i in np.flatnonzero(np.isin(self.kinds, kinds))]

    # -- the parts of a tokenizer.json

    def tokenizer(self) -> dict[str, Any]:
        model = self.find("model", "")
        if model == wordpiece.MODEL:
            return self.word_pieces()
        if model == "gpt2":
            parts, begins = self.byte_level()
        elif model == "llama":
            parts, begins = self.sentence_pieces(), True
        else:
            raise self.error(f"its model is {model!r}", "files with the models gpt2, llama and bert are read")
        begin, end = self.special("bos"), self.special("eos")
        begin = begin if self.flag("add_bos_token", begins) else None
        end = end if self.flag("add_eos_token", False) else None
        head = {"version": "1.0", "truncation": None, "padding": self.padding(self.special("padding")), "added_tokens": self.added(set())}
        return {**head, **parts, "post_processor": self.template(begin, end)}

    def word_pieces(self) -> dict[str, Any]:
        """WordPiece. A role that the file does not name has the token that it has in the published BERT."""
        named = {name: self.special(name) for name in ("bos", "cls", "seperator", "unknown", "padding")}
        ways = (("bos", "cls", 101), ("seperator", 102), ("unknown", 100), ("padding", 0))
        begin, end, unknown, pad = (next(i for i in (*map(named.get, way[:-1]), way[-1]) if i is not None) for way in ways)
        if max(begin, end, unknown, pad) >= len(self.tokens):
            raise self.error(f"there are {len(self.tokens)} tokens, and no names of those that stand around a text")
        special = {begin, end, unknown, pad, *self.of_kind(CONTROL, UNKNOWN)}
        parts = wordpiece.parts(self.tokens, special, self.tokens[unknown])
        head = {"version": "1.0", "truncation": None, "padding": self.padding(pad), "added_tokens": self.added(special)}
        return {**head, **parts, "post_processor": wordpiece.template(self.tokens[begin], self.tokens[end], self.ids)}

    def padding(self, pad: int | None) -> dict[str, Any] | None:
        pad = self.special("eos") if pad is None else pad
        if pad is None:
            return None
        place = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_type_id": 0}
        return {**place, "pad_id": pad, "pad_token": self.tokens[pad]}

    def added(self, special: set[int]) -> list[dict[str, Any]]:
        """Tokens that stand for themselves in a text: control tokens, ``special`` among them, and those that users defined."""
        control = special | set(self.of_kind(CONTROL, UNKNOWN))
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        wanted = sorted(control | set(self.of_kind(USER_DEFINED)))
        return [{"id": i, "content": self.tokens[i], **plain, "special": i in control} for i in wanted if self.tokens[i]]

    def template(self, begin: int | None, end: int | None) -> dict[str, Any]:
        def token(i: int) -> dict[str, Any]:
            return {"SpecialToken": {"id": self.tokens[i], "type_id": 0}}

        text: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
        single = [*([] if begin is None else [token(begin)]), *text, *([] if end is None else [token(end)])]
        used = {i for i in (begin, end) if i is not None}
        special = {self.tokens[i]: {"id": self.tokens[i], "ids": [i], "tokens": [self.tokens[i]]} for i in used}
        pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
        return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}

    def byte_level(self) -> tuple[dict[str, Any], bool]:
        """BPE of bytes that are written as letters; and whether a text begins with a token, where the file does not say."""
        pre = self.find("pre", "default")
        cut = CUTS.get(pre) if isinstance(pre, str) else None
        if cut is None:
            raise self.error(f"its rule for cutting text is {pre!r}", f"known are {', '.join(CUTS)}")
        merges = [self.pair(m) for m in self.texts("merges")]
        bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        splits = [{"type": "Split", "pattern": {"Regex": e}, "behavior": "Isolated", "invert": False} for e in cut.expressions]
        parts = {
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, bytes]},
            "decoder": bytes,
            "model": self.bpe(merges, ignore_merges=cut.whole),
        }
        return parts, cut.begins

    def pair(self, merge: str) -> list[str]:
        left, _, right = merge.partition(" ")
        if left not in self.ids or right not in self.ids or left + right not in self.ids:
            raise self.error(f"the merge {merge!r} is not one of tokens to a token")
        return [left, right]

    def sentence_pieces(self) -> dict[str, Any]:
        scores = self.numbers("scores", "f")
        if scores is None:
            raise self.error(f"{PREFIX}scores is missing")
        unknown = self.special("unknown")
        unknown = next(iter(self.of_kind(UNKNOWN)), None) if unknown is None else unknown
        spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        prefix = self.flag("add_space_prefix", True)
        before = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
        back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
        model = self.bpe(self.merges_of(scores), byte_fallback=True, fuse_unk=True, unk_token=None if unknown is None else self.tokens[unknown])
        return {
            "normalizer": {"type": "Sequence", "normalizers": [*before, spaces]},
            "pre_tokenizer": None,
            "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
            "model": model,
        }

    def merges_of(self, scores: np.ndarray) -> list[list[str]]:
        """All pairs of tokens that make a token, that of the highest score first; of equals, that which has the earlier parts."""
        apart = set(self.of_kind(CONTROL, UNKNOWN, UNUSED, BYTE))
        ids = self.ids
        found: list[tuple[float, int, int, int]] = []
        for i, token in enumerate(self.tokens):
            if len(token) < 2 or i in apart:
                continue
            for at in range(1, len(token)):
                left, right = ids.get(token[:at]), ids.get(token[at:])
                if left is not None and right is not None:
                    found.append((-float(scores[i]), i, left, right))
        found.sort()
        return [[self.tokens[left], self.tokens[right]] for _, _, left, right in found]

    def bpe(self, merges: Sequence[list[str]], **more: Any) -> dict[str, Any]:
        plain = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False}
        return {"type": "BPE", **plain, "byte_fallback": False, "ignore_merges": False, **more, "vocab": self.ids, "merges": merges}
