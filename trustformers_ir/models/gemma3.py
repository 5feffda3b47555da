"""Gemma 3: Gemma Team, "Gemma 3 Technical Report" (2025), the decoder of text.

A Gemma 2 with norms of queries and keys in place of bounded scores, five layers with a window for each that sees all tokens, and rotary positions of
two kinds: those of windows turn faster (section 2). Names of parameters are those of Hugging Face checkpoints, without the prefix ``model.``. See
gemma.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Scope
from trustformers_ir.models.blocks import Activation, Text
from trustformers_ir.models.config import Fields
from trustformers_ir.models.family import Family
from trustformers_ir.models.gemma import GemmaConfig, GemmaHead, gemma_sizes
from trustformers_ir.models.gemma2 import Gemma2, gemma2_sizes, optional
from trustformers_ir.models.llama import CHECKPOINT, grouped_size
from trustformers_ir.models.rotary import Rotary

GLOBAL, LOCAL = 1_000_000.0, 10_000.0


@dataclass(frozen=True)
class Gemma3Config(GemmaConfig):
    """The sizes of a Gemma 3. ``local`` turns where there is a window, ``rotary`` where there is none."""

    local: Rotary | None = None

    @classmethod
    def read(cls, fields: Fields) -> Gemma3Config:
        """The config of a ``config.json``; problems go to the fields' collector. What holds for both kinds of layers, ``rope_theta``,
        ``rope_local_base_freq`` and ``rope_scaling``, is older than an object for each in ``rope_parameters``."""
        sizes = gemma_sizes(fields, longest=131072, key_heads=4, theta=GLOBAL)
        sizes |= gemma2_sizes(fields, fields.whole("sliding_window_pattern", 6))
        features, longest = sizes["head_dim"], sizes["max_position_embeddings"]
        local = Rotary(features, fields.number("rope_local_base_freq", LOCAL, low=1.0))
        if fields.raw.get("rope_parameters"):
            inner = fields.inner("rope_parameters")
            sizes["rotary"] = Rotary.read(inner, features, longest, GLOBAL, name="full_attention")
            local = Rotary.read(inner, features, longest, LOCAL, name="sliding_attention")
        return cls(**sizes, local=local, head_norms=True, logit_softcap=optional(fields, "final_logit_softcapping", None))


class Gemma3(Gemma2):
    """The decoder; its states have ``hidden_size`` features."""

    def __init__(self, config: Gemma3Config, scope: Scope) -> None:
        super().__init__(config, scope)
        self.local, self.windows = config.local, config.windows

    def turns(self, text: Text, dtype: DType) -> Sequence[Activation | None]:
        assert self.rotary is not None and self.local is not None
        far, near = self.rotary.turning(text, dtype), self.local.turning(text, dtype)
        return [far if window is None else near for window in self.windows]


class Gemma3LanguageModel(GemmaHead, Gemma3):
    """The decoder with a head."""

    def __init__(self, config: Gemma3Config, scope: Scope) -> None:
        super().__init__(config, scope)
        self.give_gemma_head(config, scope)


_STRETCHED = {"max_position_embeddings": 131072, "sliding_window": 1024, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}

FAMILY = Family(
    model_type="gemma3_text",
    read_config=Gemma3Config.read,
    architectures={"Gemma3TextModel": Gemma3, "Gemma3ForCausalLM": Gemma3LanguageModel},
    base={  # the decoder of 4B
        "vocab_size": 262208,
        "head_dim": 256,
        **grouped_size(34, 2560, 8, 4, 10240),
        **_STRETCHED,
    },
    presets={  # table 1; configs as published
        "270m": grouped_size(18, 640, 4, 1, 2048)
        | {"vocab_size": 262144, "max_position_embeddings": 32768, "sliding_window": 512, "rope_scaling": None},
        "1b": grouped_size(26, 1152, 4, 1, 6912)
        | {"vocab_size": 262144, "max_position_embeddings": 32768, "sliding_window": 512, "rope_scaling": None},
        "12b": grouped_size(48, 3840, 16, 8, 15360),
    },
    **CHECKPOINT,
)
