"""The tokenizer of a checkpoint folder as keys of a GGUF file: the way of ``vocabulary.py`` backwards.

Three kinds of ``tokenizer.json`` can be said there, as they can be read: byte-level BPE, if text is cut by a rule that has a name (the table
``CUTS``), BPE as SentencePiece makes it, with a piece for each byte, and WordPiece (``wordpiece.py``). Files of the second kind hold scores, not
merges: a token is worth the more, the earlier the first merge that makes it stands. What was made is read again, and has to have the tokens and
merges of the tokenizer.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from trustformers_ir.frontend.folder import Folder
from trustformers_ir.frontend.gguf import wordpiece
from trustformers_ir.frontend.gguf.container import GgufFile
from trustformers_ir.frontend.gguf.metadata import Texts
from trustformers_ir.frontend.gguf.vocabulary import BYTE, CONTROL, CUTS, NO_VOCABULARY, PREFIX, SPACE, UNKNOWN, UNUSED, USER_DEFINED, tokenizer_json
from trustformers_ir.frontend.tokenizer import TOKENIZER, tokenizer_text
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.gguf_content import ARRAY, F32, I32, TEXT, Key

NORMAL = 1
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # how tokenizer_config.json calls tokens, and GGUF
MAX_TEMPLATE = 1 << 20
_BYTES = {f"<0x{n:02X}>" for n in range(256)}


def vocabulary_keys(folder: Folder | None, size: int) -> dict[str, Key]:
    """The keys of a tokenizer of ``size`` tokens, as many as the model has rows for; those that say so where there is no ``tokenizer.json``. Raises
    ``CANNOT_EXPORT`` for one of another kind, ``TOKENIZER_INVALID`` for a broken one."""
    text = None if folder is None else tokenizer_text(folder.path)
    if folder is None or text is None:
        return {f"{PREFIX}model": Key.of(NO_VOCABULARY)}
    made = _Vocabulary(folder, text, size)
    return made.checked({f"{PREFIX}{name}": key for name, key in made.keys().items()})


def template_key(folder: Folder) -> dict[str, Key]:
    """The template of conversations, where the folder has one."""
    found: Any = None
    if folder.has("chat_template.jinja"):
        with folder.file("chat_template.jinja", Code.CONFIG_INVALID).open("rb") as stream:
            found = stream.read(MAX_TEMPLATE).decode("utf-8", "replace")
    elif folder.has("tokenizer_config.json"):
        raw, _ = folder.json("tokenizer_config.json", Code.CONFIG_INVALID, 64 << 20)
        found = raw.get("chat_template") if isinstance(raw, dict) else None
    return {"tokenizer.chat_template": Key.of(found)} if isinstance(found, str) and found else {}


class _Vocabulary:
    def __init__(self, folder: Folder, text: str, size: int) -> None:
        self.folder, self.size = folder, size
        try:
            raw = json.loads(text)
            self.model: Mapping[str, Any] = raw["model"]
            self.vocab: dict[str, int] = dict(self.model["vocab"])
            self.pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in self.model.get("merges", [])]
            self.added = [(int(t["id"]), str(t["content"]), bool(t.get("special"))) for t in raw.get("added_tokens") or []]
            if any(len(p) != 2 for p in self.pairs) or not all(isinstance(i, int) for i in self.vocab.values()):
                raise ValueError("a merge has two parts, and a token a number")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            message = f"'{self.place.file}' is no tokenizer with tokens and merges: {type(error).__name__}: {error}"
            raise CompilerError.of(Code.TOKENIZER_INVALID, message, self.place) from None
        self.raw: Mapping[str, Any] = raw
        self.ids = {**self.vocab, **{content: i for i, content, _ in self.added}}

    @property
    def place(self) -> Where:
        return Where(file=self.folder.shown(TOKENIZER))

    def refused(self, what: str) -> CompilerError:
        help = "byte-level BPE with a known rule for cutting text can be written, BPE of SentencePiece, and the WordPiece of BERT without capitals"
        return CompilerError.of(Code.CANNOT_EXPORT, f"a GGUF file cannot hold the tokenizer: {what}", self.place, help)

    # -- the parts

    def keys(self) -> dict[str, Key]:
        if self.model.get("type") == "WordPiece":
            return self.word_pieces()
        if self.model.get("type") != "BPE":
            raise self.refused(f"its model is {self.model.get('type')!r}")
        if self.model.get("continuing_subword_prefix") or self.model.get("end_of_word_suffix"):
            raise self.refused("its tokens have marks inside of words, or behind them")
        tokens = self.tokens()
        pieces = bool(self.model.get("byte_fallback"))
        parts = self.sentence_pieces(tokens) if pieces else self.byte_level()
        kinds = Key(ARRAY, self.kinds(tokens, pieces), I32)
        return {**parts, "tokens": Key(ARRAY, tokens, TEXT), "token_type": kinds, **self.around(), **self.more_ends()}

    def tokens(self) -> list[str]:
        """All texts by id; what no token has is called so, as converters do."""
        highest = max(self.ids.values(), default=-1)
        if highest >= self.size or min(self.ids.values(), default=0) < 0:
            raise self.refused(f"it has a token with the id {highest}, and the model has rows for {self.size}")
        out = [f"[PAD{i}]" for i in range(self.size)]
        for token, i in self.ids.items():
            out[i] = token
        return out

    def kinds(self, tokens: Sequence[str], pieces: bool) -> list[int]:
        out = [NORMAL if token in self.ids else UNUSED for token in tokens]
        for i, token in enumerate(tokens):
            if pieces and token in _BYTES:
                out[i] = BYTE
        for i, _, special in self.added:
            out[i] = CONTROL if special else USER_DEFINED
        unknown = self.ids.get(str(self.model.get("unk_token")))
        if unknown is not None and pieces:
            out[unknown] = UNKNOWN
        return out

    def byte_level(self) -> dict[str, Key]:
        """Tokens are bytes that are written as letters."""
        if (self.raw.get("normalizer") or {}).get("type", "NFC") != "NFC":  # NFC is what texts are in, as a rule; files have no word for it
            raise self.refused(f"text is changed before it is cut ({self.raw['normalizer'].get('type')})")
        steps = self.steps("pre_tokenizer", "pretokenizers")
        if not steps or steps[-1].get("type") != "ByteLevel":
            raise self.refused("it is neither byte-level BPE nor BPE with a piece for each byte")
        cuts = tuple(self.expression(step) for step in steps[:-1])
        if steps[-1].get("add_prefix_space"):
            raise self.refused("it puts a space before each text")
        cuts += CUTS["gpt-2"].expressions if steps[-1].get("use_regex", True) else ()
        whole = bool(self.model.get("ignore_merges"))
        name = next((n for n, cut in CUTS.items() if cut.expressions == cuts and cut.whole == whole), None)
        if name is None:
            raise self.refused(f"the rule by which it cuts text has no name there: {' then '.join(cuts) or 'none'}")
        merges = [f"{left} {right}" for left, right in self.pairs]
        return {"model": Key.of("gpt2"), "pre": Key.of(name), "merges": Key(ARRAY, merges, TEXT)}

    def steps(self, name: str, inner: str) -> list[dict[str, Any]]:
        """What is done one after the other."""
        found = self.raw.get(name)
        if not isinstance(found, dict):
            return []
        steps = found.get(inner) if found.get("type") == "Sequence" else [found]
        return [s for s in steps if isinstance(s, dict)] if isinstance(steps, list) else []

    def expression(self, step: Mapping[str, Any]) -> str:
        """By what a step cuts."""
        if step.get("type") == "Digits":
            return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
        pattern = step.get("pattern")
        how = (step.get("behavior"), bool(step.get("invert")))
        if step.get("type") == "Split" and isinstance(pattern, dict) and "Regex" in pattern and how in (("Isolated", False), ("Removed", True)):
            return str(pattern["Regex"])
        raise self.refused(f"text is cut by the step {step.get('type')!r}")

    def sentence_pieces(self, tokens: Sequence[str]) -> dict[str, Key]:
        """Scores in place of merges; and whether a space stands before each text."""
        changes, cuts = self.steps("normalizer", "normalizers"), self.steps("pre_tokenizer", "pretokenizers")
        prefix = any(s.get("type") == "Prepend" and s.get("prepend") == SPACE for s in changes)
        prefix |= any(s.get("type") == "Metaspace" and s.get("prepend_scheme", "always") != "never" for s in cuts)
        known = {"Prepend": "prepend", "Replace": "content", "Metaspace": "replacement"}
        on_spaces = [s for s in cuts if s.get("type") == "Split" and s.get("pattern") == {"String": " "}]  # of which nothing is left by then
        other = [s for s in (*changes, *cuts) if s not in on_spaces and s.get(known.get(str(s.get("type")), "")) != SPACE]
        if other or not any(s.get("type") in ("Replace", "Metaspace") for s in (*changes, *cuts)):
            raise self.refused(f"text is changed by the step {other[0].get('type')!r}" if other else "it does not write spaces as SentencePiece does")
        first: dict[str, int] = {}
        for left, right in self.pairs:
            first.setdefault(left + right, len(first))
        scores = [-float(first.get(token, len(first))) for token in tokens]
        parts = {"model": Key.of("llama"), "pre": Key.of("default"), "add_space_prefix": Key.of(prefix)}
        return {**parts, "scores": Key(ARRAY, scores, F32)}

    def word_pieces(self) -> dict[str, Key]:
        """Tokens with marks at the beginning of words, where the library has them inside."""
        if (why := wordpiece.unlike(self.raw)) is not None:
            raise self.refused(why)
        special = {i for i, _, said in self.added if said}
        if len(special) < len(self.added):
            raise self.refused("users have added tokens to it")
        tokens = [wordpiece.outward(token, i in special) for i, token in enumerate(self.tokens())]
        before, after = self.template()
        if before is None or after is None:
            raise self.refused("it puts no tokens around a text")
        named = self.named(wordpiece.ROLES.values())
        roles = {theirs: self.ids[named[mine]] for theirs, mine in wordpiece.ROLES.items() if named.get(mine) in self.ids}
        roles |= {"bos": before, "cls": before, "seperator": after, "unknown": self.ids[str(self.model.get("unk_token"))]}
        kinds = Key(ARRAY, self.kinds(self.tokens(), False), I32)
        parts = {"model": Key.of(wordpiece.MODEL), "pre": Key.of("default"), "tokens": Key(ARRAY, tokens, TEXT), "token_type": kinds}
        return {**parts, **{f"{role}_token_id": Key.of(i) for role, i in roles.items()}}

    # -- tokens with a role

    def around(self) -> dict[str, Key]:
        """The tokens with a role, and which of them stand around a text."""
        named = self.named(ROLES)
        before, after = self.template()
        roles = {theirs: self.ids[named[mine]] for mine, theirs in ROLES.items() if named.get(mine) in self.ids}
        roles |= {"bos": before} if before is not None else {}
        roles |= {"eos": after} if after is not None else {}
        ends = self.ends()
        if "eos" not in roles and ends:
            roles["eos"] = ends[0]
        flags = {"add_bos_token": Key.of(before is not None), "add_eos_token": Key.of(after is not None)}
        return {**{f"{role}_token_id": Key.of(i) for role, i in roles.items()}, **flags}

    def more_ends(self) -> dict[str, Key]:
        """Models of conversations end a text with other tokens, too: of a turn, and of a message."""
        eos = self.around().get("eos_token_id")
        others = [i for i in self.ends() if eos is None or i != eos.value]
        texts = {i: token for token, i in self.ids.items()}
        messages = [i for i in others if "eom" in texts[i]]
        turns = [i for i in others if i not in messages]
        return {f"{name}_token_id": Key.of(found[0]) for name, found in (("eot", turns), ("eom", messages)) if found}

    def named(self, roles: Iterable[str]) -> dict[str, str]:
        """The texts of tokens with a role, by ``tokenizer_config.json``."""
        if not self.folder.has("tokenizer_config.json"):
            return {}
        raw, _ = self.folder.json("tokenizer_config.json", Code.CONFIG_INVALID, 64 << 20)
        found = {name: raw.get(f"{name}_token") for name in roles} if isinstance(raw, dict) else {}
        return {name: str(t.get("content")) if isinstance(t, dict) else str(t) for name, t in found.items() if t is not None}

    def ends(self) -> list[int]:
        """The ids that end a text, by the configs; those of tokens alone."""
        for name in ("generation_config.json", "config.json"):
            raw = self.folder.json(name, Code.CONFIG_INVALID)[0] if self.folder.has(name) else {}
            value = raw.get("eos_token_id") if isinstance(raw, dict) else None
            if value is not None:
                known = set(self.ids.values())
                return [i for i in (value if isinstance(value, list) else [value]) if i in known and not isinstance(i, bool)]
        return []

    def template(self) -> tuple[int | None, int | None]:
        """The token before a text, and the one behind it."""
        steps = [s for s in self.steps("post_processor", "processors") if s.get("type") != "ByteLevel"]
        if not steps:
            return None, None
        if len(steps) == 1 and steps[0].get("type") == "BertProcessing":
            return self.ids.get(str(steps[0]["cls"][0])), self.ids.get(str(steps[0]["sep"][0]))
        if len(steps) > 1 or steps[0].get("type") != "TemplateProcessing":
            raise self.refused(f"tokens are put around a text by the step {steps[0].get('type')!r}")
        single = steps[0].get("single") or []
        at = next((n for n, part in enumerate(single) if "Sequence" in part), len(single))
        found = [self.ids.get(str(part.get("SpecialToken", {}).get("id"))) for part in (*single[:at], *single[at + 1 :])]
        if at > 1 or len(single) - at > 2 or None in found:
            raise self.refused("it puts other tokens around a text than one on each side")
        return (found[0] if at else None), (found[-1] if len(single) - at == 2 else None)

    # -- is it the same

    def checked(self, keys: dict[str, Key]) -> dict[str, Key]:
        """The keys, if a reader makes the tokens and merges of the tokenizer of them."""
        told: dict[str, Any] = {}
        for name, key in keys.items():
            told[name] = key.value
            if key.type == ARRAY:
                told[name] = _texts(key.value) if key.element == TEXT else np.array(key.value, np.float32 if key.element == F32 else np.int32)
        back = json.loads(cast(str, tokenizer_json(GgufFile(Path(str(self.place.file)), 3, told, {}))))["model"]
        if any(back["vocab"].get(token) != i for token, i in self.ids.items()):
            raise self.refused("two tokens are called alike")
        if _grouped(back.get("merges", [])) != _grouped(self.pairs):
            raise self.refused("its merges do not follow from scores")
        return keys | template_key(self.folder)


def _texts(texts: Sequence[str]) -> Texts:
    """Texts as they lie in a file."""
    parts = [t.encode("utf-8") for t in texts]
    data = b"".join(struct.pack("<Q", len(p)) + p for p in parts)
    begins = np.cumsum([0, *(8 + len(p) for p in parts)], dtype=np.int64)[:-1]
    return Texts(cast(Any, data), begins)


def _grouped(pairs: Sequence[Sequence[str]]) -> list[tuple[str, frozenset[tuple[str, ...]]]]:
    """Which token is made after which, and of what. The order of pairs that make the same token next to each other says nothing."""
    groups = itertools.groupby(pairs, key="".join)
    return [(token, frozenset(tuple(p) for p in group)) for token, group in groups]
