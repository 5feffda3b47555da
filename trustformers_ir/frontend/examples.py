"""Examples to feed a model, from what people have: texts, dicts of arrays, ``.npz`` files, text files. Calibration and error reports use them.

    read_examples(["A text.", "Another one."], types, longest, tokenizer)      texts, where the model reads token ids
    read_examples({"input_ids": ids, "attention_mask": mask}, …)               one batch; a list of dicts is several
    read_examples([x0, x1], …)                                                 batches of a model of one input
    read_examples("texts.txt", …), read_examples("arrays.npz", …)              a text on each line; arrays by the names of inputs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.frontend.tokenizer import TextTokenizer
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.types import TensorType

TEXTS_AT_ONCE = 32
TAKEN = "texts, dicts of arrays by input name, or paths of .npz and text files; one of them or a list"
Batch = dict[str, np.ndarray]


def read_examples(
    data: Any, types: Mapping[str, TensorType], longest: int | None, tokenizer: Callable[[], TextTokenizer | None]
) -> list[Batch]:
    """Batches of arrays by input name, in the dtypes of the inputs (``types``) where those are integers.

    Texts are cut after ``longest`` tokens and run with others of their length, so that there is no padding. A ``str`` by itself is a path, in
    a list it is a text; a ``Path`` is a path everywhere. Raises ``CompilerError`` with everything that is wrong.
    """
    items = list(data) if isinstance(data, (list, tuple)) else [Path(data)] if isinstance(data, str) else [data]
    batches: list[Batch] = []
    texts: list[tuple[str, Where]] = []
    with Collector() as problems:
        for number, item in enumerate(items, 1):
            where = Where()
            if isinstance(item, Path):
                where = Where(file=str(item))
                if item.suffix == ".npz":
                    item = _arrays(item)
                else:
                    texts += _lines(item)
                    continue
            if isinstance(item, str):
                texts.append((item, where))
            elif isinstance(item, Mapping):
                batches.append(_typed(item, types))
            elif isinstance(item, np.ndarray) and len(types) == 1:
                batches.append(_typed({next(iter(types)): item}, types))
            else:
                problems.add(Code.CALIBRATION, f"example {number} is {type(item).__name__}, which is no input of the model", where, TAKEN)
    if texts:
        batches += _tokens(texts, types, longest, tokenizer)
    if not batches:
        raise CompilerError.of(Code.CALIBRATION, "there are no examples", help=TAKEN)
    return batches


def _typed(item: Mapping[str, Any], types: Mapping[str, TensorType]) -> Batch:
    """Integers in the dtype of the input; everything else as it is, for the call to judge."""
    arrays = {name: np.asarray(value) for name, value in item.items()}
    exact = {name for name, a in arrays.items() if name in types and types[name].dtype.is_integer and a.dtype.kind in "iu"}
    return {name: np.ascontiguousarray(a, types[name].dtype.numpy) if name in exact else a for name, a in arrays.items()}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    where = Where(file=str(path))
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except FileNotFoundError:
        raise CompilerError.of(Code.FILE_NOT_FOUND, f"'{path}' does not exist", where, "look at the path") from None
    except OSError as error:
        raise CompilerError.of(Code.UNREADABLE, f"cannot read '{path}': {error.strerror or error}", where) from error
    except Exception as error:  # numpy reads headers as Python source, which can fail in many ways
        help = "write it with numpy.savez, without pickled objects, arrays by the names of inputs"
        raise CompilerError.of(Code.BAD_ARRAY, f"'{path}' is not a .npz file of numbers: {error}", where, help) from error


def _lines(path: Path) -> list[tuple[str, Where]]:
    try:
        with path.open(encoding="utf-8") as stream:
            lines = [(line.rstrip("\n"), Where(file=str(path), line=n)) for n, line in enumerate(stream, 1) if line.strip()]
    except FileNotFoundError:
        raise CompilerError.of(Code.FILE_NOT_FOUND, f"'{path}' does not exist", Where(file=str(path)), "look at the path") from None
    except (OSError, UnicodeDecodeError) as error:
        help = "a UTF-8 file with a text on each line, or a .npz file of arrays"
        raise CompilerError.of(Code.UNREADABLE, f"cannot read '{path}': {error}", Where(file=str(path)), help) from error
    if not lines:
        raise CompilerError.of(Code.CALIBRATION, f"'{path}' holds no text", Where(file=str(path)), "a UTF-8 file with a text on each line")
    return lines


def _tokens(
    texts: Sequence[tuple[str, Where]], types: Mapping[str, TensorType], longest: int | None, tokenizer: Callable[[], TextTokenizer | None]
) -> list[Batch]:
    """Texts as token ids, those of one length together."""
    if "input_ids" not in types:
        message = f"the model does not read text: its inputs are {', '.join(types)}"
        raise CompilerError.of(Code.CALIBRATION, message, texts[0][1], "give arrays: a dict by input name, or a .npz file")
    found = tokenizer()
    if found is None:
        message = "the model has no tokenizer, so it cannot read text"
        raise CompilerError.of(Code.TOKENIZER_MISSING, message, texts[0][1], "give token ids: {'input_ids': …}, or a .npz file")
    ids, mask = found.encode_batch([t for t, _ in texts], longest, truncate=True, places=[where for _, where in texts])
    lengths = mask.sum(axis=1)
    batches: list[Batch] = []
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for start in range(0, len(rows), TEXTS_AT_ONCE):
            taken = ids[rows[start : start + TEXTS_AT_ONCE], :length]
            feed = {"input_ids": taken, "attention_mask": np.ones_like(taken), "token_type_ids": np.zeros_like(taken)}
            batches.append(_typed({name: array for name, array in feed.items() if name in types}, types))
    return batches
