"""One token of a LLaMA in torch, as its users write it to be fast: keys and values lie in buffers that a step writes into, and the whole is compiled
to one CUDA graph (https://pytorch.org/blog/accelerating-generative-ai-2/ describes the recipe)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trustformers_ir.frontend.random_model import RandomModel
from trustformers_ir.models.blocks import RmsNorm
from trustformers_ir.models.llama import LlamaLanguageModel
from trustformers_ir.tools.bench.gpu.work import Call, Place

ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
NETWORK = tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down"))
NORMS = ("input_layernorm", "post_attention_layernorm")


def make(random: RandomModel, place: Place, given: Sequence[Any]) -> Call:
    """A step with these weights: ``given`` are the id, how many tokens come before it, and the caches of keys and values of each layer with room for
    one more, as the graph of ``decode.py`` takes them. It gives the scores."""
    import torch
    import torch.nn.functional as T

    model = random.model
    assert isinstance(model, LlamaLanguageModel)
    assert isinstance(model.norm, RmsNorm) and model.rotary is not None
    layers, eps = len(model.layers), model.norm.eps
    ids, start, *caches = given

    class Part(torch.nn.Module):  # type: ignore[misc]
        """Holds weights: a graph copies tensors that are no module's."""

        def __init__(self, prefix: str, names: Iterable[str]) -> None:
            super().__init__()
            for name in names:
                self.register_buffer(held(name), place.tensor(random.weights[f"{prefix}{name}.weight"].data))

        def linear(self, x: Any, name: str) -> Any:
            return T.linear(x, getattr(self, held(name)))

        def norm(self, x: Any, name: str) -> Any:
            weight = getattr(self, held(name))
            return T.rms_norm(x, weight.shape, weight, eps)

    class Layer(Part):
        keys: torch.Tensor
        values: torch.Tensor

        def __init__(self, number: int) -> None:
            super().__init__(f"layers.{number}.", (*ATTENTION, *NETWORK, *NORMS))
            _, self.key_heads, _, features = caches[2 * number].shape
            self.heads = getattr(self, held(ATTENTION[0])).shape[0] // features
            for name, cache in zip(("keys", "values"), caches[2 * number : 2 * number + 2], strict=True):
                self.register_buffer(name, cache.clone())

        def forward(self, x: Any, at: Any, cos: Any, sin: Any) -> Any:
            y = self.norm(x, NORMS[0])
            q, k, v = (self.linear(y, name) for name in ATTENTION[:3])
            q, k = (turned(split(t, n), cos, sin) for t, n in ((q, self.heads), (k, self.key_heads)))
            v = split(v, self.key_heads)
            self.keys.index_copy_(2, at, k)
            self.values.index_copy_(2, at, v)
            out = T.scaled_dot_product_attention(q, self.keys, self.values, enable_gqa=True)
            x = x + self.linear(out.transpose(1, 2).flatten(2), ATTENTION[3])
            gate, up = (self.linear(self.norm(x, NORMS[1]), name) for name in NETWORK[:2])
            return x + self.linear(T.silu(gate) * up, NETWORK[2])

    class Step(Part):
        def __init__(self) -> None:
            super().__init__("", ("embed_tokens", "norm", "lm_head"))
            self.layers = torch.nn.ModuleList(map(Layer, range(layers)))

        def forward(self, ids: Any, at: Any, cos: Any, sin: Any) -> Any:
            x = T.embedding(ids, getattr(self, held("embed_tokens")))
            for layer in self.layers:
                x = layer(x, at, cos, sin)
            return self.linear(self.norm(x, "norm"), "lm_head")[:, -1]

    angle = start.cpu().float() * torch.from_numpy(model.rotary.frequencies)
    arguments = (ids, start, angle.cos().to(caches[0]), angle.sin().to(caches[0]))
    call = place.compiled(Step())
    return torch.no_grad()(lambda: call(*arguments))  # type: ignore[no-any-return]


def held(name: str) -> str:
    """The attribute in which a weight is held."""
    return "weight_" + name.replace(".", "_")


def split(x: Any, heads: int) -> Any:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def turned(x: Any, cos: Any, sin: Any) -> Any:
    """Rotary positions in torch: feature i turns with feature i + half."""
    import torch

    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
