"""Mixtral: Jiang et al., "Mixtral of Experts" (2024): a Mistral with several networks in a layer, some of which a router chooses for each token.

Names of parameters are those of Hugging Face checkpoints, without the prefix ``model.``. See llama.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Parameter, Scope
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.models.blocks import ACTIVATIONS, Activation, Linear
from trustformers_ir.models.config import Fields
from trustformers_ir.models.decoder import LanguageModel
from trustformers_ir.models.family import Family
from trustformers_ir.models.llama import CHECKPOINT, Llama, LlamaConfig, grouped_size, llama_sizes
from trustformers_ir.models.mistral import window_of


@dataclass(frozen=True)
class MixtralConfig(LlamaConfig):
    """The sizes of a Mixtral: ``chosen`` of ``experts`` networks compute each token."""

    experts: int = 8
    chosen: int = 2

    @classmethod
    def read(cls, fields: Fields) -> MixtralConfig:
        """The config of a ``config.json``; problems go to the fields' collector."""
        sizes = llama_sizes(fields, longest=131072, key_heads=8, eps=1e-5, theta=1000000.0)
        sizes["windows"] = (window_of(fields),) * sizes["num_hidden_layers"]
        experts = fields.whole("num_local_experts", 8)
        return cls(**sizes, experts=experts, chosen=fields.whole("num_experts_per_tok", 2, high=experts))


class Experts:
    """``sum_i softmax(top_k(router(x)))_i E_i(x)``, each expert a SwiGLU. Only chosen ones are computed and read.

    Weights are ``[experts, outputs, inputs]``, or a matrix for each expert, as checkpoints hold them; their transposes, side by side, are made when
    the model is compiled.
    """

    def __init__(self, config: MixtralConfig, scope: Scope) -> None:
        h, inner = config.hidden_size, config.intermediate_size
        self.router = Linear(scope.child("gate"), h, config.experts, bias=False)
        self.chosen, self.activation = config.chosen, ACTIVATIONS[config.hidden_act]
        shapes = {"w1": (inner, h), "w2": (h, inner), "w3": (inner, h)}
        self.gate, self.down, self.up = (self._weights(scope.child("experts"), name, config.experts, shape) for name, shape in shapes.items())

    @staticmethod
    def _weights(scope: Scope, name: str, count: int, shape: tuple[int, int]) -> Parameter | Sequence[Parameter]:
        if scope.has(f"0.{name}.weight"):
            return [scope.child(i, name).param("weight", shape) for i in range(count)]
        return scope.child(name).param("weight", (count, *shape))

    def __call__(self, x: Tensor) -> Tensor:
        best = F.softmax(self.router(x).to(DType.f32)).topk(self.chosen)
        shares = (best.values / best.values.sum(-1, keepdim=True)).to(x.dtype)
        rows = x[:, :, None, :]
        gate, up = (F.expert_matmul(rows, _turned(w), best.indices) for w in (self.gate, self.up))
        made = F.expert_matmul(self.activation(gate) * up, _turned(self.down), best.indices)
        return (made * shares[..., None]).sum(2)


def _turned(weights: Parameter | Sequence[Parameter]) -> Tensor:
    """``[experts, inputs, outputs]``."""
    if isinstance(weights, Parameter):
        return F.tensor(weights).transpose(1, 2)
    return F.stack([F.tensor(w) for w in weights]).transpose(1, 2)


class Mixtral(Llama):
    """The decoder; its states have ``hidden_size`` features."""

    def network(self, config: LlamaConfig, scope: Scope) -> Activation:
        assert isinstance(config, MixtralConfig)
        return Experts(config, scope.child("block_sparse_moe"))


class MixtralLanguageModel(LanguageModel, Mixtral):
    """The decoder with a head, which is the token embedding where the config ties them."""

    def __init__(self, config: MixtralConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.give_head(scope, tied=config.tie_word_embeddings)


FAMILY = Family(
    model_type="mixtral",
    read_config=MixtralConfig.read,
    architectures={"MixtralModel": Mixtral, "MixtralForCausalLM": MixtralLanguageModel},
    base={"vocab_size": 32000, "max_position_embeddings": 32768, **grouped_size(32, 4096, 32, 8, 14336)},  # table 1, 8x7B
    presets={"8x22b": grouped_size(56, 6144, 48, 8, 16384) | {"max_position_embeddings": 65536}},  # config as published
    **CHECKPOINT,
)
