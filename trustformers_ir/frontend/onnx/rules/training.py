"""``ai.onnx.preview.training``: one step of an optimizer, over any number of tensors."""

from __future__ import annotations

from collections.abc import Callable

from trustformers_ir.frontend.onnx.node import TRAINING, Node, onnx_op
from trustformers_ir.frontend.onnx.values import Refused
from trustformers_ir.ir.functional import where
from trustformers_ir.ir.tensor import Tensor

Step = Callable[[Node, Tensor, Tensor, list[Tensor]], list[Tensor]]


def _groups(n: Node, per: int, step: Step) -> list[Tensor]:
    """The inputs after rate and count are ``per`` groups of as many tensors; the results are groups as well."""
    rest = len(n.inputs) - 2
    n.require(rest > 0 and rest % per == 0, f"{rest} tensors in groups of {per}")
    count = rest // per
    rate, turn = n.t(0).reshape(), n.t(1).reshape()
    out = [step(n, rate, turn, [n.t(2 + g * count + i) for g in range(per)]) for i in range(count)]
    return [row[g] for g in range(per - 1) for row in out]


def _momentum(n: Node, rate: Tensor, turn: Tensor, xs: list[Tensor]) -> list[Tensor]:
    x, g, v = xs
    alpha, beta = float(n.attr("alpha")), float(n.attr("beta"))
    mode = n.attr("mode")
    if mode not in ("standard", "nesterov"):
        raise Refused(f"the mode {mode}", broken=True)
    g = g + x * float(n.attr("norm_coefficient"))
    b = where(turn > 0, turn.to(x.dtype) * 0.0 + beta, turn.to(x.dtype) * 0.0 + 1.0)
    v = v * alpha + g * b
    return [x - rate * (v if mode == "standard" else g + v * alpha), v]


@onnx_op("Momentum", domain=TRAINING)
def _read_momentum(n: Node) -> list[Tensor]:
    return _groups(n, 3, _momentum)


def _adagrad(n: Node, rate: Tensor, turn: Tensor, xs: list[Tensor]) -> list[Tensor]:
    x, g, h = xs
    r = rate / (turn.to(x.dtype) * float(n.attr("decay_factor", 0.0)) + 1.0)
    g = g + x * float(n.attr("norm_coefficient", 0.0))
    h = h + g * g
    return [x - r * g / (h.sqrt() + float(n.attr("epsilon", 1e-6))), h]


@onnx_op("Adagrad", domain=TRAINING)
def _read_adagrad(n: Node) -> list[Tensor]:
    return _groups(n, 3, _adagrad)


def _adam(n: Node, rate: Tensor, turn: Tensor, xs: list[Tensor]) -> list[Tensor]:
    """Kingma & Ba 2014."""
    x, g, v, h = xs
    alpha, beta = float(n.attr("alpha", 0.9)), float(n.attr("beta", 0.999))
    g = g + x * float(n.attr("norm_coefficient", 0.0))
    v = v * alpha + g * (1 - alpha)
    h = h * beta + g * g * (1 - beta)
    t = turn.to(x.dtype)
    adjusted = rate * (1.0 - _power(beta, t)).sqrt() / (1.0 - _power(alpha, t))
    r = where(turn > 0, adjusted, rate)
    x = x - r * v / (h.sqrt() + float(n.attr("epsilon", 1e-6)))
    return [x * (1.0 - float(n.attr("norm_coefficient_post", 0.0))), v, h]


def _power(base: float, exponent: Tensor) -> Tensor:
    return (exponent * 0.0 + base) ** exponent


@onnx_op("Adam", domain=TRAINING)
def _read_adam(n: Node) -> list[Tensor]:
    return _groups(n, 4, _adam)
