"""RNN, GRU and LSTM over sequences of a constant length, one step after the other."""

from __future__ import annotations

from collections.abc import Callable

from trustformers_ir.frontend.onnx.node import Node, emit, onnx_op
from trustformers_ir.frontend.onnx.values import Refused
from trustformers_ir.ir import ops
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import stack, where
from trustformers_ir.ir.tensor import Tensor, as_tensor

Function = Callable[[Tensor], Tensor]
MOST_STEPS = 1 << 12


def _activation(name: str, alpha: float | None, beta: float | None) -> Function:
    def given(value: float | None, default: float) -> float:
        return default if value is None else float(value)

    table: dict[str, Function] = {
        "relu": lambda x: emit(x, ops.Relu()),
        "tanh": lambda x: x.tanh(),
        "sigmoid": lambda x: x.sigmoid(),
        "affine": lambda x: x * given(alpha, 1.0) + given(beta, 0.0),
        "leakyrelu": lambda x: emit(x, ops.LeakyRelu(given(alpha, 0.01))),
        "thresholdedrelu": lambda x: where(x > given(alpha, 1.0), x, x * 0.0),
        "scaledtanh": lambda x: (x * given(beta, 1.0)).tanh() * given(alpha, 1.0),
        "hardsigmoid": lambda x: (x * given(alpha, 0.2) + given(beta, 0.5)).clamp(0.0, 1.0),
        "elu": lambda x: emit(x, ops.Elu(given(alpha, 1.0))),
        "softsign": lambda x: x / (x.abs() + 1.0),
        "softplus": lambda x: emit(x, ops.Softplus()),
    }
    if name.lower() not in table:
        raise Refused(f"the activation {name}", broken=True)
    return table[name.lower()]


class _Cell:
    """One direction: the weights, and what a step does."""

    def __init__(self, n: Node, kind: str, direction: int, functions: list[Function], hidden: int) -> None:
        self.n, self.kind, self.f, self.h = n, kind, functions, hidden
        gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
        self.w, self.r = n.t(1)[direction], n.t(2)[direction]
        bias = n.t(3)[direction] if n.has(3) else None
        self.wb = None if bias is None else bias.narrow(0, 0, gates * hidden)
        self.rb = None if bias is None else bias.narrow(0, gates * hidden, gates * hidden)
        self.clip = n.attr("clip", None)
        peep = n.t(7)[direction] if kind == "LSTM" and n.has(7) else None
        self.peep = None if peep is None else [peep.narrow(0, i * hidden, hidden) for i in range(3)]

    def limited(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-float(self.clip), float(self.clip))

    def part(self, t: Tensor, i: int) -> Tensor:
        return t.narrow(-1, i * self.h, self.h)

    def before(self, x: Tensor) -> Tensor:
        """What all steps need of the inputs: ``[steps, batch, gates * hidden]``."""
        y = x.matmul(self.w.transpose(0, 1))
        return y if self.wb is None else y + self.wb

    def step(self, given: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.kind == "GRU":
            return self._gru(given, h), None
        y = given + h.matmul(self.r.transpose(0, 1))
        y = y if self.rb is None else y + self.rb
        if self.kind == "RNN":
            return self.f[0](self.limited(y)), None
        assert c is not None
        i, o, f, g = (self.part(y, k) for k in range(4))
        if self.peep is not None:
            i, f = i + self.peep[0] * c, f + self.peep[2] * c
        i = self.f[0](self.limited(i))
        f = 1.0 - i if self.n.attr("input_forget", 0) else self.f[0](self.limited(f))
        new = f * c + i * self.f[1](self.limited(g))
        if self.peep is not None:
            o = o + self.peep[1] * new
        return self.f[0](self.limited(o)) * self.f[2](new), new

    def _gru(self, given: Tensor, h: Tensor) -> Tensor:
        recurrent = self.r
        z_r = recurrent.narrow(0, 0, 2 * self.h)
        y = h.matmul(z_r.transpose(0, 1))
        y = y if self.rb is None else y + self.rb.narrow(0, 0, 2 * self.h)
        z = self.f[0](self.limited(self.part(given, 0) + self.part(y, 0)))
        r = self.f[0](self.limited(self.part(given, 1) + self.part(y, 1)))
        last = recurrent.narrow(0, 2 * self.h, self.h).transpose(0, 1)
        bias = None if self.rb is None else self.rb.narrow(0, 2 * self.h, self.h)
        if self.n.attr("linear_before_reset", 0):
            inner = h.matmul(last)
            inner = r * (inner if bias is None else inner + bias)
        else:
            inner = (r * h).matmul(last)
            inner = inner if bias is None else inner + bias
        new = self.f[1](self.limited(self.part(given, 2) + inner))
        return (1.0 - z) * new + z * h


@onnx_op("RNN", "GRU", "LSTM")
def _recurrent(n: Node) -> list[Tensor]:
    kind = n.op
    x = n.t(0)
    dtype = x.dtype
    batchwise = bool(n.attr("layout", 0))
    x = x.transpose(0, 1) if batchwise else x
    steps, batch, _ = n.sizes(x, 3)
    hidden = n.attr("hidden_size", None)
    hidden = int(n.t(2).shape[-1] if hidden is None else hidden)  # type: ignore[arg-type]
    direction = n.attr("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    steps = n.whole(steps, "the number of steps")
    if steps > MOST_STEPS:
        raise Refused(f"a recurrent layer of more than {MOST_STEPS} steps")
    per = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}[kind]
    names = n.attr("activations", None) or per * directions
    alphas, betas = n.attr("activation_alpha", None) or [], n.attr("activation_beta", None) or []
    n.require(len(names) == len(per) * directions, f"{len(names)} activations")
    functions = [_activation(name, *(v[i] if i < len(v) else None for v in (alphas, betas))) for i, name in enumerate(names)]
    lengths = n.t(4).to(DType.i64).reshape(batch, 1) if n.has(4) else None
    every: list[Tensor] = []
    last: list[Tensor] = []
    cells: list[Tensor] = []
    for d in range(directions):
        cell = _Cell(n, kind, d, functions[d * len(per) : (d + 1) * len(per)], hidden)
        backwards = direction == "reverse" or d == 1
        h = _initial(n, 5, d, batch, hidden, x, batchwise)
        c = _initial(n, 6, d, batch, hidden, x, batchwise) if kind == "LSTM" else None
        ready = cell.before(x)
        outputs: list[Tensor | None] = [None] * steps
        for i in range(steps):
            at = steps - 1 - i if backwards else i
            new_h, new_c = cell.step(ready.select(0, at), h, c)
            if lengths is not None:
                live = lengths > at
                out = where(live, new_h, new_h * 0.0)
                h = where(live, new_h, h)
                c = where(live, new_c, c) if c is not None and new_c is not None else None
                outputs[at] = out
            else:
                h, c = new_h, new_c
                outputs[at] = h
        every.append(stack([o for o in outputs if o is not None], 0) if steps else as_tensor(0, dtype).expand(0, batch, hidden))
        last.append(h)
        if c is not None:
            cells.append(c)
    y = stack(every, 1)  # [steps, directions, batch, hidden]
    y_h = stack(last, 0)
    y_c = [stack(cells, 0)] if cells else []
    if batchwise:
        y = y.permute(2, 0, 1, 3)
        y_h = y_h.transpose(0, 1)
        y_c = [t.transpose(0, 1) for t in y_c]
    return [y, y_h, *y_c]


def _initial(n: Node, i: int, d: int, batch: object, hidden: int, x: Tensor, batchwise: bool) -> Tensor:
    if not n.has(i):
        return as_tensor(0, x.dtype).expand(batch, hidden)
    t = n.t(i)
    return t.select(1, d) if batchwise else t[d]

