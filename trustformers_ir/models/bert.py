"""BERT: Devlin, Chang, Lee & Toutanova, "Pre-training of Deep Bidirectional Transformers for Language Understanding" (2019).

An encoder of post-norm Transformer layers (Vaswani et al. 2017) over the sum of token, segment and position embeddings. MiniLM (Wang et al. 2020)
and most sentence encoders are BERTs. Names of parameters are those of Hugging Face checkpoints, without the prefix ``bert.``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Scope
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.types import TensorType
from trustformers_ir.models.blocks import (
    ACTIVATIONS,
    Embedding,
    FeedForward,
    LayerNorm,
    LearnedPositions,
    Linear,
    MultiHeadAttention,
    Pooler,
    padding_mask,
)
from trustformers_ir.models.config import Fields
from trustformers_ir.models.family import MAX_BATCH, Family, transformer_size


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT. Defaults of a config.json are those of the published code."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    num_labels: int = 2
    tie_word_embeddings: bool = True

    @classmethod
    def read(cls, fields: Fields) -> BertConfig:
        """The config of a ``config.json``; problems go to the fields' collector."""
        config = cls(
            vocab_size=fields.whole("vocab_size"),
            hidden_size=fields.whole("hidden_size"),
            num_hidden_layers=fields.whole("num_hidden_layers", low=0, high=10_000),
            num_attention_heads=fields.whole("num_attention_heads"),
            intermediate_size=fields.whole("intermediate_size"),
            max_position_embeddings=fields.whole("max_position_embeddings"),
            type_vocab_size=fields.whole("type_vocab_size", 2),
            hidden_act=fields.choice("hidden_act", ACTIVATIONS, "gelu"),
            layer_norm_eps=fields.number("layer_norm_eps", 1e-12),
            num_labels=fields.labels(),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        )
        fields.divides("num_attention_heads", "hidden_size")
        fields.choice("position_embedding_type", ["absolute"], "absolute")
        for name in ("is_decoder", "add_cross_attention"):
            if fields.flag(name, False):
                fields.unsupported(name, "is true: BERT is supported as an encoder only")
        return config


class BertEmbeddings:
    """Section 3, figure 2: the sum of token, segment and position embeddings, normalised."""

    def __init__(self, config: BertConfig, scope: Scope) -> None:
        h = config.hidden_size
        self.tokens = Embedding(scope.child("word_embeddings"), config.vocab_size, h)
        self.positions = LearnedPositions(scope.child("position_embeddings"), config.max_position_embeddings, h)
        self.segments = Embedding(scope.child("token_type_embeddings"), config.type_vocab_size, h)
        self.norm = LayerNorm(scope.child("LayerNorm"), h, config.layer_norm_eps)

    def __call__(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        _, length = input_ids.shape
        segment = F.tensor(self.segments.weight)[0] if token_type_ids is None else self.segments(token_type_ids)
        return self.norm(self.tokens(input_ids) + segment + self.positions.first(length))


class BertLayer:
    """A Transformer layer: attention and feed-forward network, each followed by residual sum and norm."""

    def __init__(self, config: BertConfig, scope: Scope) -> None:
        h, eps = config.hidden_size, config.layer_norm_eps
        attention, inner, outer = scope.child("attention"), scope.child("intermediate"), scope.child("output")
        self.attention = MultiHeadAttention(
            query=Linear(attention.child("self", "query"), h, h),
            key=Linear(attention.child("self", "key"), h, h),
            value=Linear(attention.child("self", "value"), h, h),
            output=Linear(attention.child("output", "dense"), h, h),
            heads=config.num_attention_heads,
        )
        self.attention_norm = LayerNorm(attention.child("output", "LayerNorm"), h, eps)
        self.feed_forward = FeedForward(
            inner=Linear(inner.child("dense"), h, config.intermediate_size),
            outer=Linear(outer.child("dense"), config.intermediate_size, h),
            activation=ACTIVATIONS[config.hidden_act],
        )
        self.output_norm = LayerNorm(outer.child("LayerNorm"), h, eps)

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention_norm(x + self.attention(x, mask))
        return self.output_norm(x + self.feed_forward(x))


class Bert:
    """The encoder: token ids to one hidden state per token. Padding (``attention_mask`` 0) has no influence on the states of tokens."""

    defaults: Mapping[str, int] = {"attention_mask": 1, "token_type_ids": 0}

    def __init__(self, config: BertConfig, scope: Scope, pooler: bool = False) -> None:
        self.config = config
        self.embeddings = BertEmbeddings(config, scope.child("embeddings"))
        self.layers = [BertLayer(config, scope.child("encoder", "layer", i)) for i in range(config.num_hidden_layers)]
        h = config.hidden_size
        self.pooler = Pooler(Linear(scope.child("pooler", "dense"), h, h), F.tanh) if pooler else None

    @property
    def inputs(self) -> Mapping[str, TensorType]:
        ids = DType.i64["batch", "seq"]
        return {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids}

    @property
    def facts(self) -> Mapping[str, SymbolFact]:
        return {"batch": SymbolFact(1, MAX_BATCH), "seq": SymbolFact(1, self.config.max_position_embeddings)}

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Tensor:
        """The hidden states ``[batch, seq, hidden]`` of the last layer."""
        mask = None if attention_mask is None else padding_mask(attention_mask)
        x = self.embeddings(input_ids, token_type_ids)
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def pooled(self, hidden: Tensor) -> Tensor:
        assert self.pooler is not None, "the model was built without a pooler"
        return self.pooler(hidden)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        hidden = self.encode(**inputs)
        return {"last_hidden_state": hidden} | ({} if self.pooler is None else {"pooler_output": self.pooled(hidden)})


# --- tasks -------------------------------------------------------------------------------------------------------------------------


class MaskedLanguageModelHead:
    """Section 3.1, task 1: scores of all tokens of the vocabulary for every position.

    The projection is the token embedding, transposed, unless the config unties them.
    """

    def __init__(self, config: BertConfig, scope: Scope, tokens: Embedding) -> None:
        h = config.hidden_size
        self.transform = Linear(scope.child("transform", "dense"), h, h)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.norm = LayerNorm(scope.child("transform", "LayerNorm"), h, config.layer_norm_eps)
        own = not config.tie_word_embeddings
        self.weight = scope.child("decoder").param("weight", (config.vocab_size, h)) if own else tokens.weight
        bias = scope.child("decoder") if own and scope.has("decoder.bias") else scope
        self.bias = bias.param("bias", (config.vocab_size,))

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.linear(self.norm(self.activation(self.transform(hidden))), self.weight, self.bias)


class BertForMaskedLM(Bert):
    """The encoder with the head of task 1."""

    def __init__(self, config: BertConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.predictions = MaskedLanguageModelHead(config, scope.child("cls", "predictions"), self.embeddings.tokens)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.predictions(self.encode(**inputs))}


class BertForNextSentencePrediction(Bert):
    """Section 3.1, task 2: does the second segment follow the first?"""

    def __init__(self, config: BertConfig, scope: Scope) -> None:
        super().__init__(config, scope, pooler=True)
        self.seq_relationship = Linear(scope.child("cls", "seq_relationship"), config.hidden_size, 2)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.seq_relationship(self.pooled(self.encode(**inputs)))}


class BertForPreTraining(BertForNextSentencePrediction):
    """Both tasks of section 3.1."""

    def __init__(self, config: BertConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.predictions = MaskedLanguageModelHead(config, scope.child("cls", "predictions"), self.embeddings.tokens)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        hidden = self.encode(**inputs)
        pooled = self.seq_relationship(self.pooled(hidden))
        return {"prediction_logits": self.predictions(hidden), "seq_relationship_logits": pooled}


class BertForSequenceClassification(Bert):
    """Section 4.1: a label per text."""

    def __init__(self, config: BertConfig, scope: Scope) -> None:
        super().__init__(config, scope, pooler=True)
        self.classifier = Linear(scope.child("classifier"), config.hidden_size, config.num_labels)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classifier(self.pooled(self.encode(**inputs)))}


class BertForTokenClassification(Bert):
    """Section 5.3: a label per token."""

    def __init__(self, config: BertConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.classifier = Linear(scope.child("classifier"), config.hidden_size, config.num_labels)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classifier(self.encode(**inputs))}


class BertForQuestionAnswering(Bert):
    """Section 4.2: scores of every token as the start and as the end of the answer."""

    def __init__(self, config: BertConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.qa_outputs = Linear(scope.child("qa_outputs"), config.hidden_size, 2)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        start, end = self.qa_outputs(self.encode(**inputs)).unbind(-1)
        return {"start_logits": start, "end_logits": end}


def bert_model(config: BertConfig, scope: Scope) -> Bert:
    """The encoder, with the pooler when the checkpoint holds one."""
    return Bert(config, scope, pooler=scope.has("pooler.dense.weight", "pooler.dense.bias"))


_ARCHITECTURES: dict[str, Callable[[BertConfig, Scope], Bert]] = {
    "BertModel": bert_model,
    "BertForMaskedLM": BertForMaskedLM,
    "BertForNextSentencePrediction": BertForNextSentencePrediction,
    "BertForPreTraining": BertForPreTraining,
    "BertForQuestionAnswering": BertForQuestionAnswering,
    "BertForSequenceClassification": BertForSequenceClassification,
    "BertForTokenClassification": BertForTokenClassification,
}

FAMILY = Family(
    model_type="bert",
    read_config=BertConfig.read,
    architectures=_ARCHITECTURES,
    prefix="bert",
    base={
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    },
    presets={  # Turc et al., "Well-Read Students Learn Better" (2019), table 1; Devlin et al., section 3; Wang et al., section 4
        "tiny": transformer_size(2, 128, 2),
        "mini": transformer_size(4, 256, 4),
        "small": transformer_size(4, 512, 8),
        "medium": transformer_size(8, 512, 8),
        "large": transformer_size(24, 1024, 16),
        "minilm": transformer_size(6, 384, 12),
    },
    renames=((r"\.LayerNorm\.gamma$", ".LayerNorm.weight"), (r"\.LayerNorm\.beta$", ".LayerNorm.bias")),
    parts=("pooler", "cls.predictions", "cls.seq_relationship", "classifier", "qa_outputs"),
    ignorable=(r"embeddings\.(position_ids|token_type_ids)", r"cls\.predictions\.(decoder\.weight|decoder\.bias|bias)"),
)
