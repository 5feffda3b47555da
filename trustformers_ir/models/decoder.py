"""What decoders of text have in common: token ids and their mask go in; a state of each token comes out, or the scores of the token after it.

A family derives its decoder from :class:`Decoder`, and one with a head from both :class:`LanguageModel` and that decoder::

    class Gpt2LanguageModel(LanguageModel, Gpt2):
        def __init__(self, config: Gpt2Config, scope: Scope) -> None:
            super().__init__(config, scope)
            self.give_head(scope, tied=config.tie_word_embeddings)
"""

from __future__ import annotations

from collections.abc import Mapping

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Parameter, Scope
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.types import TensorType
from trustformers_ir.models.blocks import Embedding, Text, padding_mask
from trustformers_ir.models.family import MAX_BATCH


class Decoder:
    """Ids ``i64[batch, seq]`` to one normalised state for each, ``[batch, seq, features]``, made of the tokens up to it.

    ``attention_mask``, ``i64[batch, seq]``, is 0 where there is padding; it may be left out. ``tokens`` holds a vector of each token, ``longest`` is
    the most tokens that a text has. A family says what ``states`` are.
    """

    defaults: Mapping[str, int] = {"attention_mask": 1}

    def __init__(self, tokens: Embedding, longest: int) -> None:
        self.tokens = tokens
        self.longest = longest

    @property
    def inputs(self) -> Mapping[str, TensorType]:
        ids = DType.i64["batch", "seq"]
        return {"input_ids": ids, "attention_mask": ids}

    @property
    def facts(self) -> Mapping[str, SymbolFact]:
        return {"batch": SymbolFact(1, MAX_BATCH), "seq": SymbolFact(1, self.longest)}

    def states(self, input_ids: Tensor, text: Text) -> Tensor:
        """The normalised states of the last layer."""
        raise NotImplementedError

    def decode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The states of ids."""
        mask = None if attention_mask is None else padding_mask(attention_mask)
        return self.states(input_ids, Text(input_ids.shape[1], mask))

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": self.decode(**inputs)}


class LanguageModel(Decoder):
    """Scores ``[batch, seq, vocab]`` of all tokens as the next one, in place of the states; ``give_head`` says by which projection."""

    head: Parameter

    def give_head(self, scope: Scope, tied: bool) -> None:
        """The projection is the token embedding where the two are tied, ``lm_head.weight`` of the same shape where they are not."""
        self.head = self.tokens.weight if tied else scope.child("lm_head").param("weight", self.tokens.weight.shape)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": F.linear(self.decode(**inputs), self.head)}
