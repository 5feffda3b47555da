"""ViT: Dosovitskiy et al., "An Image Is Worth 16x16 Words: Transformers for Image Recognition at Scale" (2020).

An encoder of pre-norm Transformer layers over a class token and the patches of an image. Equations are those of section 3.1. Names of
parameters are those of Hugging Face checkpoints, without the prefix ``vit.``.
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
from trustformers_ir.models.blocks import ACTIVATIONS, FeedForward, LayerNorm, Linear, MultiHeadAttention, Pooler
from trustformers_ir.models.config import Fields
from trustformers_ir.models.family import MAX_BATCH, Family, transformer_size


@dataclass(frozen=True)
class ViTConfig:
    """The sizes of a ViT; pairs are (height, width). ``tokens`` are the parameters that stand before the patches."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    pooler_output_size: int = 0
    pooler_act: str = "tanh"
    num_labels: int = 2
    tokens: tuple[str, ...] = ("cls_token",)

    @classmethod
    def read(cls, fields: Fields) -> ViTConfig:
        """The config of a ``config.json``; problems go to the fields' collector."""
        width = fields.whole("hidden_size")
        config = cls(
            hidden_size=width,
            num_hidden_layers=fields.whole("num_hidden_layers", low=0, high=10_000),
            num_attention_heads=fields.whole("num_attention_heads"),
            intermediate_size=fields.whole("intermediate_size"),
            image_size=fields.pair("image_size"),
            patch_size=fields.pair("patch_size"),
            num_channels=fields.whole("num_channels", 3),
            hidden_act=fields.choice("hidden_act", ACTIVATIONS, "gelu"),
            layer_norm_eps=fields.number("layer_norm_eps", 1e-12),
            qkv_bias=fields.flag("qkv_bias", True),
            pooler_output_size=fields.whole("pooler_output_size", width),
            pooler_act=fields.choice("pooler_act", ACTIVATIONS, "tanh"),
            num_labels=fields.labels(low=0),
        )
        fields.divides("num_attention_heads", "hidden_size")
        if fields.right("image_size", "patch_size") and 0 in config.grid:
            fields.fail("patch_size", f"is {config.patch_size}, which does not fit into image_size {config.image_size}")
        if fields.right("hidden_size", "num_attention_heads"):
            features = width // config.num_attention_heads
            if fields.whole("head_dim", features) != features:
                fields.unsupported("head_dim", f"is not hidden_size / num_attention_heads, {features}")
        if fields.flag("interpolate_pos_encoding", False):
            fields.unsupported("interpolate_pos_encoding", "is true: images have the size that image_size says")
        return config

    @property
    def grid(self) -> tuple[int, int]:
        """How many whole patches there are below and beside each other."""
        return (self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1])


class PatchEmbedding:
    """``x_p E``: the image is cut into patches, and each one, as a flat vector, is mapped to the width of the model.

    Cut and map are one convolution whose windows touch and do not overlap.
    """

    def __init__(self, config: ViTConfig, scope: Scope) -> None:
        self.weight = scope.param("weight", (config.hidden_size, config.num_channels, *config.patch_size))
        self.bias = scope.param("bias", (config.hidden_size,))
        self.size = config.patch_size

    def __call__(self, image: Tensor) -> Tensor:
        patches = F.conv2d(image.to(self.weight.dtype), self.weight, self.bias, stride=self.size)
        return patches.flatten(2).transpose(1, 2)


class ViTEmbeddings:
    """Equation 1: ``z_0 = [x_class; x_p^1 E; …; x_p^N E] + E_pos``."""

    def __init__(self, config: ViTConfig, scope: Scope) -> None:
        h, count = config.hidden_size, config.grid[0] * config.grid[1]
        self.tokens = [scope.param(name, (1, 1, h)) for name in config.tokens]
        self.patches = PatchEmbedding(config, scope.child("patch_embeddings", "projection"))
        self.positions = scope.param("position_embeddings", (1, len(self.tokens) + count, h))

    def __call__(self, image: Tensor) -> Tensor:
        patches = self.patches(image)
        batch, _, features = patches.shape
        tokens = [F.tensor(t).expand(batch, 1, features) for t in self.tokens]
        return F.concat([*tokens, patches], dim=1) + F.tensor(self.positions)


class ViTLayer:
    """Equations 2 and 3: ``z' = MSA(LN(z)) + z``, then ``MLP(LN(z')) + z'``."""

    def __init__(self, config: ViTConfig, scope: Scope) -> None:
        h, eps = config.hidden_size, config.layer_norm_eps
        inputs, output = scope.child("attention", "attention"), scope.child("attention", "output")
        self.attention_norm = LayerNorm(scope.child("layernorm_before"), h, eps)
        self.attention = MultiHeadAttention(
            query=Linear(inputs.child("query"), h, h, config.qkv_bias),
            key=Linear(inputs.child("key"), h, h, config.qkv_bias),
            value=Linear(inputs.child("value"), h, h, config.qkv_bias),
            output=Linear(output.child("dense"), h, h),
            heads=config.num_attention_heads,
        )
        self.feed_forward_norm = LayerNorm(scope.child("layernorm_after"), h, eps)
        self.feed_forward = FeedForward(
            inner=Linear(scope.child("intermediate", "dense"), h, config.intermediate_size),
            outer=Linear(scope.child("output", "dense"), config.intermediate_size, h),
            activation=ACTIVATIONS[config.hidden_act],
        )

    def __call__(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class ViT:
    """The encoder: an image to one normalised state for the class token and for each patch, row by row."""

    defaults: Mapping[str, int] = {}

    def __init__(self, config: ViTConfig, scope: Scope, pooler: bool = False) -> None:
        self.config = config
        h = config.hidden_size
        self.embeddings = ViTEmbeddings(config, scope.child("embeddings"))
        self.layers = [ViTLayer(config, scope.child("encoder", "layer", i)) for i in range(config.num_hidden_layers)]
        self.norm = LayerNorm(scope.child("layernorm"), h, config.layer_norm_eps)
        dense = Linear(scope.child("pooler", "dense"), h, config.pooler_output_size) if pooler else None
        self.pooler = None if dense is None else Pooler(dense, ACTIVATIONS[config.pooler_act])

    @property
    def inputs(self) -> Mapping[str, TensorType]:
        return {"pixel_values": DType.f32[("batch", self.config.num_channels, *self.config.image_size)]}

    @property
    def facts(self) -> Mapping[str, SymbolFact]:
        return {"batch": SymbolFact(1, MAX_BATCH)}

    def encode(self, pixel_values: Tensor) -> Tensor:
        """The states ``[batch, tokens + patches, hidden]``; the one of the class token is ``y`` of equation 4."""
        x = self.embeddings(pixel_values)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        hidden = self.encode(**inputs)
        return {"last_hidden_state": hidden} | ({} if self.pooler is None else {"pooler_output": self.pooler(hidden)})


class ViTForImageClassification(ViT):
    """Section 3.1: a label per image, from the state of the class token."""

    def __init__(self, config: ViTConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.classifier = classifier(config, scope.child("classifier"))

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classifier(self.encode(**inputs)[:, 0])}


def classifier(config: ViTConfig, scope: Scope) -> Callable[[Tensor], Tensor]:
    """From a state to a score of each label; to the state itself when there are no labels, as transformers has it."""
    return Linear(scope, config.hidden_size, config.num_labels) if config.num_labels else lambda state: state


def vit_model(config: ViTConfig, scope: Scope) -> ViT:
    """The encoder, with the pooler when the checkpoint holds one."""
    return ViT(config, scope, pooler=scope.has("pooler.dense.weight", "pooler.dense.bias"))


_ARCHITECTURES: dict[str, Callable[[ViTConfig, Scope], ViT]] = {
    "ViTModel": vit_model,
    "ViTForImageClassification": ViTForImageClassification,
}

FAMILY = Family(
    model_type="vit",
    read_config=ViTConfig.read,
    architectures=_ARCHITECTURES,
    prefix="vit",
    base={**transformer_size(12, 768, 12), "image_size": 224, "patch_size": 16, "num_channels": 3},
    presets={  # table 1; the small ones: Steiner et al., "How to Train Your ViT?" (2021), table 2
        "tiny": transformer_size(12, 192, 3),
        "small": transformer_size(12, 384, 6),
        "large": transformer_size(24, 1024, 16),
        "huge": transformer_size(32, 1280, 16) | {"patch_size": 14},
    },
    renames=(  # names that transformers 5 uses in memory
        (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ),
    parts=("pooler", "classifier", "decoder"),
    ignorable=(r"embeddings\.mask_token",),
)
