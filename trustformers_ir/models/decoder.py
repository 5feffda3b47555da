"""What decoders of text have in common: token ids and their mask go in; a state of each token comes out, or the scores of the token after it.

A family derives its decoder from :class:`Decoder`, and one with a head from both :class:`LanguageModel` and that decoder::

    class Gpt2LanguageModel(LanguageModel, Gpt2):
        def __init__(self, config: Gpt2Config, scope: Scope) -> None:
            super().__init__(config, scope)
            self.give_head(scope, tied=config.tie_word_embeddings)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Parameter, Scope
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.types import TensorType
from trustformers_ir.models.blocks import Activation, Embedding, LearnedPositions, Text, padding_mask
from trustformers_ir.models.cached import CachedText
from trustformers_ir.models.family import MAX_BATCH
from trustformers_ir.models.rotary import Rotary

Layer = Callable[[Tensor, Activation | None, Text], Tensor]


class Decoder:
    """Ids ``i64[batch, seq]`` to one normalised state for each, ``[batch, seq, features]``, made of the tokens up to it.

    ``attention_mask``, ``i64[batch, seq]``, is 0 where there is padding; it may be left out. ``tokens`` holds a vector of each token, to which that
    of its place in ``positions`` is added where there are such; ``rotary`` turns queries and keys of all layers; ``longest`` is the most tokens that
    a text has.
    """

    defaults: Mapping[str, int] = {"attention_mask": 1}

    def __init__(
        self,
        tokens: Embedding,
        layers: Sequence[Layer],
        norm: Activation,
        longest: int,
        rotary: Rotary | None = None,
        positions: LearnedPositions | None = None,
    ) -> None:
        self.tokens, self.layers, self.norm = tokens, layers, norm
        self.rotary, self.positions = rotary, positions
        self.longest = longest

    @property
    def inputs(self) -> Mapping[str, TensorType]:
        ids = DType.i64["batch", "seq"]
        return {"input_ids": ids, "attention_mask": ids}

    @property
    def facts(self) -> Mapping[str, SymbolFact]:
        return {"batch": SymbolFact(1, MAX_BATCH), "seq": SymbolFact(1, self.longest)}

    def embedded(self, input_ids: Tensor, text: Text) -> Tensor:
        """What the first layer reads."""
        x = self.tokens(input_ids)
        return x if self.positions is None else x + text.placed(self.positions)

    def turns(self, text: Text, dtype: DType) -> Sequence[Activation | None]:
        """What turns queries and keys of each layer, ``[batch, heads, seq, features]``."""
        turn = None if self.rotary is None else self.rotary.turning(text, dtype)
        return [turn] * len(self.layers)

    def states(self, input_ids: Tensor, text: Text) -> Tensor:
        """The normalised states of the last layer."""
        x = self.embedded(input_ids, text)
        for layer, turn in zip(self.layers, self.turns(text, x.dtype), strict=True):
            x = layer(x, turn, text)
        return self.norm(x)

    def decode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The states of ids."""
        mask = None if attention_mask is None else padding_mask(attention_mask)
        return self.states(input_ids, Text(input_ids.shape[1], mask))

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": self.decode(**inputs)}


class LanguageModel(Decoder):
    """Scores ``[batch, seq, vocab]`` of all tokens as the next one, in place of the states; ``give_head`` says by which projection."""

    head: Parameter
    head_bias: Parameter | None = None

    def give_head(self, scope: Scope, tied: bool, bias: bool = False) -> None:
        """The projection is the token embedding where the two are tied, a weight of the same shape where they are not."""
        rows, _ = self.tokens.weight.shape
        self.head = self.tokens.weight if tied else scope.child("lm_head").param("weight", self.tokens.weight.shape)
        self.head_bias = scope.child("lm_head").param("bias", (rows,)) if bias else None

    def shaped(self, logits: Tensor) -> Tensor:
        """The scores made of the products with the head."""
        return logits

    def scored(self, states: Tensor) -> Tensor:
        """The scores that follow from states."""
        return self.shaped(F.linear(states, self.head, self.head_bias))

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.scored(self.decode(**inputs))}

    def read_on(self, input_ids: Tensor, text: CachedText, last: Tensor | None) -> Tensor:
        """The scores ``[batch, vocab]`` after the token ``last`` of each text, counted from the first of ``input_ids``; after the last one."""
        states = self.states(input_ids, text)
        if last is not None:
            batch, _, features = states.shape
            states = states.gather(1, last[:, None, None].expand(batch, 1, features))
        return self.scored(states[:, -1])
