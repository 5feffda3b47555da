"""A tiny BERT on the disk, and the command line called in process: what the tests of ``tfc`` share."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save

import trustformers_ir as tfir
from trustformers_ir.tools.cli import main

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"the a cat dog sat ran on under mat tree and or very old new".split()]
LAYERS = 2
CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}
RANDOM = "random:bert?" + "&".join(f"{name}={value}" for name, value in CONFIG.items() if isinstance(value, int))


@functools.cache
def weights() -> dict[str, np.ndarray]:
    """The weights of the tiny BERT, under the names of a checkpoint."""
    return {f"bert.{name}": w.data for name, w in tfir.api.to_module(RANDOM).weights.items()}


@functools.cache
def tokenizer() -> str:
    """One token per word; [CLS] and [SEP] around every text."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    around = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return str(made.to_str())


def write_checkpoint(folder: Path | str, arrays: dict[str, np.ndarray] | None = None) -> Path:
    """The tiny BERT as a checkpoint folder; ``arrays`` replaces its weights."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    (folder / "model.safetensors").write_bytes(save(arrays or weights(), {"format": "pt"}))
    (folder / "tokenizer.json").write_text(tokenizer())
    return folder


@functools.cache
def artifact_bytes() -> bytes:
    """The tiny BERT compiled for this machine."""
    with tempfile.TemporaryDirectory() as place:
        folder = write_checkpoint(Path(place) / "m")
        tfir.compile(folder).save(folder / "m.tfc")
        return (folder / "m.tfc").read_bytes()


def tfc(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
