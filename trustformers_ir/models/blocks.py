"""The blocks that architectures are made of. A block asks its scope for parameters when it is made, and computes when it is called.

Names of blocks and formulas follow Vaswani et al., "Attention Is All You Need" (2017), unless a docstring says otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.parameters import Parameter, Scope
from trustformers_ir.ir.tensor import Tensor

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_fast": lambda x: F.gelu(x, "tanh"),
    "gelu_new": lambda x: F.gelu(x, "tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, "tanh"),
    "gelu_python": F.gelu,
    "hardswish": F.hard_swish,
    "linear": lambda x: x,
    "mish": F.mish,
    "quick_gelu": lambda x: x * F.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu6": lambda x: x.clamp(0, 6),
    "sigmoid": F.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": F.tanh,
}
"""``hidden_act`` of configs -> function."""


class Linear:
    """``x @ weight.T + bias``."""

    def __init__(self, scope: Scope, inputs: int, outputs: int, bias: bool = True) -> None:
        self.weight = scope.param("weight", (outputs, inputs))
        self.bias = scope.param("bias", (outputs,)) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class LayerNorm:
    """Ba, Kiros & Hinton, "Layer Normalization" (2016)."""

    def __init__(self, scope: Scope, features: int, eps: float = 1e-5, bias: bool = True) -> None:
        self.weight = scope.param("weight", (features,))
        self.bias = scope.param("bias", (features,)) if bias else None
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps)


class RmsNorm:
    """Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019); scaled by ``weight + offset``."""

    def __init__(self, scope: Scope, features: int, eps: float = 1e-6, offset: float = 0.0) -> None:
        self.weight = scope.param("weight", (features,))
        self.eps, self.offset = eps, offset

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight, self.eps, self.offset)


class Embedding:
    """A learned vector for every id."""

    def __init__(self, scope: Scope, rows: int, features: int) -> None:
        self.weight = scope.param("weight", (rows, features))

    def __call__(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class LearnedPositions(Embedding):
    """A learned vector for every position (Gehring et al. 2017); positions count from 0."""

    def first(self, length: Dim) -> Tensor:
        """The vectors of positions ``0 .. length - 1``."""
        return F.tensor(self.weight)[:length]


class SinusoidalPositions:
    """Section 3.5: ``PE(p, 2i) = sin(p / 10000 ** (2i / d))`` and ``PE(p, 2i + 1) = cos(p / 10000 ** (2i / d))``."""

    def __init__(self, rows: int, features: int) -> None:
        angle = np.arange(rows)[:, None] / 10000 ** (np.arange(0, features, 2)[None, :] / features)
        table = np.empty((rows, features))
        table[:, 0::2], table[:, 1::2] = np.sin(angle), np.cos(angle[:, : features // 2])
        self.table = table.astype(np.float32)

    def first(self, length: Dim) -> Tensor:
        """The vectors of positions ``0 .. length - 1``."""
        return F.tensor(self.table)[:length]


class MultiHeadAttention:
    """Section 3.2.2: ``Concat(head_1, …, head_h) W^O`` with ``head_i = softmax(Q_i K_i^T / sqrt(d_k)) V_i``."""

    def __init__(self, query: Linear, key: Linear, value: Linear, output: Linear, heads: int) -> None:
        self.query, self.key, self.value, self.output = query, key, value, output
        self.heads = heads

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Self-attention over ``x[batch, length, features]``; ``mask[batch, heads | 1, length | 1, length]`` is true where a key may be seen."""
        q, k, v = (split_heads(projection(x), self.heads) for projection in (self.query, self.key, self.value))
        return self.output(merge_heads(F.attention(q, k, v, mask)))


class Text:
    """A text that a decoder reads whole: where its tokens stand, and which of them see each other.

    ``mask`` is that of :func:`padding_mask`. Positions, vectors that are looked up by them and attention come from here alone, in every family: who
    reads a text in pieces, and keeps keys and values of those before, has another one of these, and no other model.
    """

    def __init__(self, length: Dim, mask: Tensor | None) -> None:
        self.length, self.mask = length, mask

    @functools.cached_property
    def positions(self) -> Tensor:
        """``i64[length]``: where each token stands. Equal for all texts of a batch, whatever the mask says."""
        return F.arange(self.length)

    @functools.cached_property
    def reach(self) -> Tensor:
        """``i64[]``: how many tokens of the text have been read, these among them."""
        return F.tensor(self.length)

    def placed(self, table: LearnedPositions) -> Tensor:
        """The vector of each position, ``[length, features]``."""
        return table.first(self.length)

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        bias: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """What each token makes of itself and those before it, ``[batch, length, heads * features]``.

        q is ``[batch, heads, length, features]``, k and v are those of the same tokens, with fewer heads where heads share them (Ainslie et al.
        2023); ``layer`` counts the layers with attention of the decoder from 0. ``scale`` (``1 / sqrt(features)``), ``window`` and ``softcap`` are
        those of ``F.attention``; ``bias`` makes what is added to scores, ``[batch | 1, heads, 1, keys]``, of the positions ``i64[keys]`` of the keys.
        """
        added = None if bias is None else bias(self.positions)
        seen = F.attention(q, k, v, self.mask, added, causal=True, scale=scale, window=window, softcap=softcap)
        return merge_heads(seen)


class ApartHeads:
    """Queries, keys and values of heads by a product each; several heads of queries may share one of keys and values (Ainslie et al. 2023).

    Called with ``x[batch, length, features]``, this and its like give all three as ``[batch, heads, length, features]``."""

    def __init__(self, query: Activation, key: Activation, value: Activation, heads: int, key_heads: int) -> None:
        self.query, self.key, self.value = query, key, value
        self.heads, self.key_heads = heads, key_heads

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.query(x), self.key(x), self.value(x)
        return split_heads(q, self.heads), split_heads(k, self.key_heads), split_heads(v, self.key_heads)


class JoinedHeads:
    """Queries, keys and values by one product: those of all heads one behind the other."""

    def __init__(self, product: Activation, heads: int, key_heads: int) -> None:
        self.product = product
        self.heads, self.key_heads = heads, key_heads

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        joined = self.product(x)
        features = joined.shape[-1] // (self.heads + 2 * self.key_heads)
        first, second = self.heads * features, (self.heads + self.key_heads) * features
        q, k, v = joined[..., :first], joined[..., first:second], joined[..., second:]
        return split_heads(q, self.heads), split_heads(k, self.key_heads), split_heads(v, self.key_heads)


class MixedHeads:
    """Queries, keys and values by one product, group by group: the queries that share a key, then it, then its value."""

    def __init__(self, product: Activation, heads: int, key_heads: int) -> None:
        self.product = product
        self.key_heads, self.group = key_heads, heads // key_heads

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        joined = self.product(x)
        batch, length, width = joined.shape
        features = width // (self.key_heads * (self.group + 2))
        parts = joined.reshape(batch, length, self.key_heads, self.group + 2, features)
        q = parts[:, :, :, : self.group].reshape(batch, length, self.key_heads * self.group, features)
        k, v = parts[:, :, :, self.group], parts[:, :, :, self.group + 1]
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class HeadNorm:
    """A layer norm of each head over its features, with a scale of its own and no bias. The weight is ``[heads, features]``, or one for each head."""

    def __init__(self, weight: Parameter | Sequence[Parameter], eps: float) -> None:
        self.weight, self.eps = weight, eps

    def __call__(self, x: Tensor) -> Tensor:
        """``x[batch, heads, length, features]``."""
        weight = F.tensor(self.weight) if isinstance(self.weight, Parameter) else F.stack(self.weight)
        normed: Tensor = F.layer_norm(x, eps=self.eps) * weight[:, None, :]
        return normed


class CausalAttention:
    """Self-attention of a text: each token sees itself and those before it.

    ``heads`` makes queries, keys and values; ``norms`` are norms of queries and of keys; ``layer``, ``scale``, ``window``, ``softcap`` and ``bias``
    are those of :meth:`Text.attend`.
    """

    def __init__(
        self,
        heads: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
        output: Activation,
        layer: int,
        *,
        norms: tuple[Activation, Activation] | None = None,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        bias: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.heads, self.output, self.layer, self.norms = heads, output, layer, norms
        self.scale, self.window, self.softcap, self.bias = scale, window, softcap, bias

    def __call__(self, x: Tensor, turn: Activation | None, text: Text) -> Tensor:
        """``x[batch, length, features]``; ``turn`` gives ``[batch, heads, length, features]`` their rotary positions (Su et al. 2021)."""
        q, k, v = self.heads(x)
        if self.norms is not None:
            q, k = self.norms[0](q), self.norms[1](k)
        if turn is not None:
            q, k = turn(q), turn(k)
        seen = text.attend(self.layer, q, k, v, scale=self.scale, window=self.window, softcap=self.softcap, bias=self.bias)
        return self.output(seen)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[batch, length, heads * features]`` to ``[batch, heads, length, features]``."""
    batch, length, features = x.shape
    return x.reshape(batch, length, heads, features // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """The inverse of ``split_heads``."""
    batch, heads, length, features = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * features)


class FeedForward:
    """Section 3.3: ``FFN(x) = activation(x W_1 + b_1) W_2 + b_2``."""

    def __init__(self, inner: Activation, outer: Activation, activation: Activation) -> None:
        self.inner, self.outer = inner, outer
        self.activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        return self.outer(self.activation(self.inner(x)))


class GatedFeedForward:
    """Shazeer, "GLU Variants Improve Transformer" (2020), equation 6: ``FFN(x) = (activation(x W) * x V) W_2``; with SiLU it is SwiGLU."""

    def __init__(self, gate: Linear, up: Linear, down: Linear, activation: Activation) -> None:
        self.gate, self.up, self.down = gate, up, down
        self.activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class JoinedGate:
    """A gated network whose first two products are one: the gate, then what it lets through."""

    def __init__(self, gate_up: Activation, down: Activation, activation: Activation) -> None:
        self.gate_up, self.down, self.activation = gate_up, down, activation

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(self.activation(gate) * up)


class PreNormLayer:
    """Attention, then a feed-forward network, each behind a norm and beside a residual (Radford et al. 2019); ``after``: norms of what they add."""

    def __init__(
        self,
        attention_norm: Activation,
        attention: CausalAttention,
        feed_forward_norm: Activation,
        feed_forward: Activation,
        after: tuple[Activation, Activation] | None = None,
    ) -> None:
        self.attention_norm, self.attention = attention_norm, attention
        self.feed_forward_norm, self.feed_forward = feed_forward_norm, feed_forward
        self.after = after

    def __call__(self, x: Tensor, turn: Activation | None, text: Text) -> Tensor:
        seen = self.attention(self.attention_norm(x), turn, text)
        x = x + (seen if self.after is None else self.after[0](seen))
        made = self.feed_forward(self.feed_forward_norm(x))
        return x + (made if self.after is None else self.after[1](made))


class ParallelLayer:
    """Attention and a feed-forward network beside each other (Wang & Komatsuzaki, "GPT-J-6B", 2021), of one norm, or of one each."""

    def __init__(
        self, attention_norm: Activation, attention: CausalAttention, feed_forward: Activation, feed_forward_norm: Activation | None = None
    ) -> None:
        self.attention_norm, self.attention = attention_norm, attention
        self.feed_forward, self.feed_forward_norm = feed_forward, feed_forward_norm

    def __call__(self, x: Tensor, turn: Activation | None, text: Text) -> Tensor:
        normed = self.attention_norm(x)
        seen = self.attention(normed, turn, text)
        return x + seen + self.feed_forward(normed if self.feed_forward_norm is None else self.feed_forward_norm(x))


class Pooler:
    """One vector for the whole input: the state of the first token, ``[CLS]``, projected (Devlin et al. 2019)."""

    def __init__(self, dense: Linear, activation: Activation) -> None:
        self.dense = dense
        self.activation = activation

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden[:, 0]))


def padding_mask(attention_mask: Tensor) -> Tensor:
    """``[batch, length]`` with 1 for tokens and 0 for padding, to a mask of keys for attention."""
    return (attention_mask != 0)[:, None, None, :]
