"""Programs of users that cannot be compiled. The line that an error has to name carries ``# wrong: <code>``; several lines have to be named at once.

Each is a module with an example of its inputs. ``test_torch_errors.py`` compiles all of them, ``test_wrong_programs.py`` by the command line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Wrong:
    """A program: its class, an example of its inputs, and how it is compiled."""

    make: Callable[[], Any]
    inputs: Any
    dynamic: Any = None
    name: str = ""


PROGRAMS: list[Wrong] = []


def program(*inputs: Any, dynamic: Any = None, **named: Any) -> Callable[[Any], Any]:
    def put(kind: Any) -> Any:
        PROGRAMS.append(Wrong(kind, named or inputs, dynamic, kind.__name__))
        return kind

    return put


X = torch.arange(12.0).reshape(3, 4)
IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


# --- branches and numbers that depend on data --------------------------------------------------------------------------------------


@program(X)
class BranchOnSum(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # wrong: TFC3021
            return x + 1
        return x - 1


@program(X)
class BranchOnElement(nn.Module):
    def forward(self, x):
        y = x * 2
        return y if y[0, 0] > 1 else -y  # wrong: TFC3021


@program(X)
class WhileLoop(nn.Module):
    def forward(self, x):
        while x.max() < 100:  # wrong: TFC3021
            x = x * 2
        return x


@program(X)
class AssertOnData(nn.Module):
    def forward(self, x):
        assert (x >= 0).all()  # wrong: TFC3021
        return x.sqrt()


@program(X)
class ItemIntoRange(nn.Module):
    def forward(self, x):
        n = x[0, 1].int().item()
        for _ in range(n):  # wrong: TFC3021
            x = x + 1
        return x


@program(X)
class FloatOfTensor(nn.Module):
    def forward(self, x):
        scale = float(x.max())  # wrong: TFC3021
        return x * math.sqrt(scale)


@program(X)
class ListOfTensor(nn.Module):
    def forward(self, x):
        rows = x[:, 0].int().tolist()  # wrong: TFC3021
        return torch.stack([x[r] for r in rows])


@program(X)
class BoolOfTensor(nn.Module):
    def forward(self, x):
        flag = bool((x > 3).any())  # wrong: TFC3021
        return x if flag else -x


@program(X)
class AndOfTensors(nn.Module):
    def forward(self, x):
        return x * 2 if x.min() > 0 and x.max() < 1 else x  # wrong: TFC3021


@program(X, torch.tensor(2))
class SizeFromTensor(nn.Module):
    def forward(self, x, n):
        return x[: n.item()] * 2  # wrong: TFC3021


@program(torch.tensor(5))
class ArangeOfTensor(nn.Module):
    def forward(self, n):
        return torch.arange(n.item()) + 1  # wrong: TFC3021


@program(X)
class AllClose(nn.Module):
    def forward(self, x):
        if torch.allclose(x, x * 1.0):  # wrong: TFC3021
            return x
        return x * 0


@program(X)
class Equal(nn.Module):
    def forward(self, x):
        if torch.equal(x, x + 0):  # wrong: TFC3021
            return x
        return x * 0


# --- sizes that depend on data -----------------------------------------------------------------------------------------------------


@program(X)
class MaskedRows(nn.Module):
    def forward(self, x):
        return x[x.sum(-1) > 6]  # wrong: TFC3021


@program(X)
class MaskedSelect(nn.Module):
    def forward(self, x):
        return torch.masked_select(x, x > 3)  # wrong: TFC3021


@program(X)
class Nonzero(nn.Module):
    def forward(self, x):
        at = torch.nonzero(x > 3)  # wrong: TFC3021
        return at.float().mean(0)


@program(X)
class WhereOne(nn.Module):
    def forward(self, x):
        rows, columns = torch.where(x > 3)  # wrong: TFC3021
        return rows + columns


@program(IDS)
class Unique(nn.Module):
    def forward(self, ids):
        return torch.unique(ids)  # wrong: TFC3021


@program(IDS)
class UniqueConsecutive(nn.Module):
    def forward(self, ids):
        return torch.unique_consecutive(ids)  # wrong: TFC3021


@program(X, torch.tensor([1, 2, 3]))
class RepeatByTensor(nn.Module):
    def forward(self, x, n):
        return torch.repeat_interleave(x, n, dim=0)  # wrong: TFC3021


@program(IDS.flatten())
class Bincount(nn.Module):
    def forward(self, ids):
        return torch.bincount(ids)  # wrong: TFC3021


@program(IDS)
class OneHotUnknown(nn.Module):
    def forward(self, ids):
        return F.one_hot(ids)  # wrong: TFC3021


# --- random numbers ----------------------------------------------------------------------------------------------------------------


@program(X)
class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)  # wrong: TFC3020


@program(X)
class Rand(nn.Module):
    def forward(self, x):
        gate = torch.rand(x.shape)  # wrong: TFC3020
        return x * gate


@program(X)
class Bernoulli(nn.Module):
    def forward(self, x):
        return x * torch.bernoulli(torch.sigmoid(x))  # wrong: TFC3020


@program(X)
class FunctionalDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.1)  # wrong: TFC3020


@program(X)
class Multinomial(nn.Module):
    def forward(self, x):
        return torch.multinomial(x.softmax(-1), 1)  # wrong: TFC3020


@program(X)
class Shuffle(nn.Module):
    def forward(self, x):
        return x[torch.randperm(4)[:3]]  # wrong: TFC3020


@program(X.reshape(1, 1, 3, 4).repeat(1, 2, 1, 1))
class AttentionDropout(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)  # wrong: TFC3020


# --- writes that outlive the call --------------------------------------------------------------------------------------------------


@program(X)
class InPlaceInput(nn.Module):
    def forward(self, x):
        x += 1  # wrong: TFC3024
        return x * 2


@program(X)
class InPlaceSlice(nn.Module):
    def forward(self, x):
        x[:, 0] = 0  # wrong: TFC3024
        return x.sum(-1)


@program(X, X.clone())
class CopyInto(nn.Module):
    def forward(self, x, out):
        out.copy_(x * 2)  # wrong: TFC3024
        return x.sum()


@program(X)
class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)  # wrong: TFC3024
        return x * self.calls


@program(X)
class RunningMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean.mul_(0.9).add_(x.mean(0) * 0.1)  # wrong: TFC3024
        return x - self.mean


# --- training ----------------------------------------------------------------------------------------------------------------------


class InTraining(nn.Module):  # wrong: TFC3025
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return self.drop(x) * 2


class InTrainingToo(nn.Module):  # wrong: TFC3025
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(x)


PROGRAMS.append(Wrong(lambda: InTraining().train(), (X,), name="InTraining"))
PROGRAMS.append(Wrong(lambda: InTrainingToo().train(), (X,), name="InTrainingToo"))


# --- ops that are not compiled -----------------------------------------------------------------------------------------------------


@program(torch.eye(3))
class Inverse(nn.Module):
    def forward(self, x):
        return torch.linalg.inv(x)  # wrong: TFC3020


@program(torch.eye(3))
class Svd(nn.Module):
    def forward(self, x):
        u, s, _ = torch.linalg.svd(x)  # wrong: TFC3020
        return u * s


@program(torch.eye(3))
class Cholesky(nn.Module):
    def forward(self, x):
        return torch.linalg.cholesky(x + torch.eye(3))  # wrong: TFC3020


@program(torch.eye(3), X)
class Solve(nn.Module):
    def forward(self, a, b):
        return torch.linalg.solve(a, b)  # wrong: TFC3020


@program(X)
class Lgamma(nn.Module):
    def forward(self, x):
        return torch.lgamma(x + 1)  # wrong: TFC3020


@program(X)
class Bits(nn.Module):
    def forward(self, x):
        return x.view(torch.int16) + 1  # wrong: TFC3020


@program(X)
class Mode(nn.Module):
    def forward(self, x):
        return torch.mode(x, -1).values  # wrong: TFC3020


@program(X)
class Sparse(nn.Module):
    def forward(self, x):
        return torch.sparse.mm(x.to_sparse(), x.t())  # wrong: TFC3020


@program(X)
class TwoAtOnce(nn.Module):
    def forward(self, x):
        y = torch.lgamma(x + 1)  # wrong: TFC3020
        z = torch.digamma(x + 1)  # wrong: TFC3020
        return y + z


@program(X)
class InALoop(nn.Module):
    def forward(self, x):
        for _ in range(5):
            x = torch.special.i0(x) * 0.1  # wrong: TFC3020
        return x


@program(X)
class InAHelper(nn.Module):
    def forward(self, x):
        return helper(x) * 2


def helper(x):
    return torch.polygamma(1, x + 1)  # wrong: TFC3020


@program(X)
class InASubmodule(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), Rand())

    def forward(self, x):
        return self.inner(x)


# --- devices, numpy, gradients, results --------------------------------------------------------------------------------------------


@program(X)
class ToCuda(nn.Module):
    def forward(self, x):
        return x.cuda() + 1  # wrong: TFC3028


@program(X)
class OnMeta(nn.Module):
    def forward(self, x):
        return x + torch.ones(4, device="meta")  # wrong: TFC3028


@program(X)
class ThroughNumpy(nn.Module):
    def forward(self, x):
        return torch.from_numpy(np.sin(x.numpy()))  # wrong: TFC3022


@program(X)
class Backward(nn.Module):
    def forward(self, x):
        y = (x.requires_grad_() ** 2).sum()
        return torch.autograd.grad(y, x)[0]  # wrong: TFC3022


@program(X)
class ReturnsText(nn.Module):
    def forward(self, x):
        return {"y": x, "shape": object()}  # wrong: TFC3029


@program(X)
class Raises(nn.Module):
    def forward(self, x):
        raise NotImplementedError("later")  # wrong: TFC3022


@program(X)
class NoSuchMethod(nn.Module):
    def forward(self, x):
        return x.softmaxx(-1)  # wrong: TFC3022


# --- shapes ------------------------------------------------------------------------------------------------------------------------


@program(X)
class WrongLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        return self.fc(x)  # wrong: TFC3003


@program(X, X)
class WrongMatmul(nn.Module):
    def forward(self, a, b):
        return a @ b  # wrong: TFC3003


@program(X)
class WrongView(nn.Module):
    def forward(self, x):
        return x.view(5, -1)  # wrong: TFC3003


@program(X, torch.ones(3, 3))
class WrongCat(nn.Module):
    def forward(self, a, b):
        return torch.cat([a, b], 0)  # wrong: TFC3003


@program(X)
class WrongAxis(nn.Module):
    def forward(self, x):
        return x.sum(dim=3)  # wrong: TFC3003


@program(X)
class WrongAdd(nn.Module):
    def forward(self, x):
        return x + torch.ones(5)  # wrong: TFC3003


@program(X, IDS)
class FloatIndex(nn.Module):
    def forward(self, x, ids):
        return F.embedding(x, ids.float())  # wrong: TFC3003


@program(X)
class MixedDtypes(nn.Module):
    def forward(self, x):
        return x.double() @ x.t()  # wrong: TFC3003


# --- requests ----------------------------------------------------------------------------------------------------------------------


class Fine(nn.Module):
    def forward(self, x, y=None):
        return x * 2 if y is None else x * y


PROGRAMS += [
    Wrong(Fine, None, name="no_inputs"),  # wrong: none TFC3023
    Wrong(Fine, (X, X, X), name="too_many_inputs"),  # wrong: none TFC3023
    Wrong(Fine, {"z": X}, name="unknown_input"),  # wrong: none TFC3023
    Wrong(Fine, (X,), dynamic=("tokens",), name="unknown_dim"),  # wrong: none TFC3026
    Wrong(Fine, (X,), dynamic={"q": {0: "batch"}}, name="unknown_input_of_dynamic"),  # wrong: none TFC3026
    Wrong(Fine, (X,), dynamic={"x": {7: "batch"}}, name="unknown_axis_of_dynamic"),  # wrong: none TFC3026
    Wrong(lambda: nn.Linear(4, 2, device="meta"), (X,), name="weights_without_memory"),  # wrong: none TFC3028
    Wrong(Fine, (X.to("meta"),), name="input_without_memory"),  # wrong: none TFC3028
]


def model_of(wrong: Wrong) -> Any:
    """The module of a program."""
    model = wrong.make()
    return model if wrong.name.startswith("InTraining") else model.eval()


made = SimpleNamespace(**{w.name: (lambda w=w: (model_of(w), w.inputs)) for w in PROGRAMS})  # factories, for the command line
LINES = Path(__file__).read_text().splitlines()
MARK = re.compile(r"# wrong: (TFC\d+)")
DETACHED = re.compile(r'name="([^"]+)".*# wrong: none (TFC\d+)')


def expected(wrong: Wrong) -> set[tuple[str, int | None]]:
    """Codes and lines, as the marks in the class of the program, and in what it calls, say."""
    for line in LINES:
        found = DETACHED.search(line)
        if found and found[1] == wrong.name:
            return {(found[2], None)}
    named = {"InAHelper": "def helper", "InASubmodule": "class Rand("}.get(wrong.name, f"class {wrong.name}(")
    start = next(n for n, line in enumerate(LINES) if line.startswith(named))
    out: set[tuple[str, int | None]] = set()
    for n in range(start, len(LINES)):
        if n > start and re.match(r"(class|def|@|PROGRAMS|# ---)", LINES[n]):
            break
        found = MARK.search(LINES[n])
        if found:
            out.add((found[1], n + 1))
    return out
