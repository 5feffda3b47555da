"""Modules of torch through ``tfir.compile``: numbers, dims, nests, weights, lines, and what is said aloud."""

from __future__ import annotations

import inspect
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_zoo
from torch import nn

import trustformers_ir as tfir
from trustformers_ir.frontend.torch_export.importer import _DROPPED
from trustformers_ir.frontend.torch_export.read import TorchNote, load_torch
from trustformers_ir.frontend.torch_export.registry import ATEN, REFUSED
from trustformers_ir.ir.calling import Calling
from trustformers_ir.ir.diagnostics import Code, CompilerError

QUICK = ("bert", "llama with a cache", "t5", "vit")
Pair = namedtuple("Pair", "first second")


class Tied(nn.Module):
    """A table that is read, and multiplied by: one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.inner = nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.linspace(0.5, 2, 16))

    def forward(self, ids: Any, mask: Any = None) -> dict[str, Any]:
        x = self.inner(self.table(ids)).relu() * self.scale
        x = x if mask is None else x * mask[..., None]
        return {"logits": self.head(x), "hidden": (x, x.mean(1)), "nothing": None}


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 50, shape)


def notes_of(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in caught if w.category is TorchNote]


def test_nests_weights_and_open_dims() -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exe = tfir.compile(model, {"ids": ids(1, 5), "mask": torch.ones(1, 5)})
    assert not notes_of(caught)
    assert set(exe.symbols) >= {"batch", "seq"}
    for shape in ((1, 5), (3, 8), (2, 1)):
        given = {"ids": ids(*shape), "mask": (torch.rand(*shape) > 0.5).float()}
        got, wanted = exe(**given), model(**given)
        assert list(got) == ["logits", "hidden", "nothing"] and got["nothing"] is None and isinstance(got["hidden"], tuple)
        torch.testing.assert_close(got["logits"], wanted["logits"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got["hidden"], wanted["hidden"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exe(given["ids"], given["mask"])["logits"], wanted["logits"], rtol=1e-4, atol=1e-5)  # by position
    arrays = exe(**{k: v.numpy() for k, v in given.items()})
    assert isinstance(arrays["logits"], np.ndarray)


def test_weights_are_views_and_tied_ones_are_one() -> None:
    model = Tied().eval()
    module = load_torch(model, (ids(2, 5),))
    assert sorted(module.weights) == ["inner.bias", "inner.weight", "table.weight"] or "head.weight" in module.weights
    assert len(module.weights) == 3  # the buffer of 16 numbers is written into the graph
    table = next(w for w in module.weights.values() if w.type.shape == (50, 16))
    assert table.data.ctypes.data == model.table.weight.data_ptr()


def test_operations_carry_the_line_of_the_user() -> None:
    module = load_torch(Tied().eval(), (ids(2, 5),))
    lines, first = inspect.getsourcelines(Tied.forward)
    wanted = first + next(n for n, line in enumerate(lines) if "self.head(x)" in line)
    product = [o for o in module.walk() if o.op.mnemonic == "linear"][-1]
    assert product.loc is not None and product.loc.file.endswith("test_torch_frontend.py") and product.loc.line == wanted


def test_saved_artifacts_keep_how_they_are_called(tmp_path: Path) -> None:
    model = Tied().eval()
    exe = tfir.compile(model, (ids(2, 5),))
    exe.save(tmp_path / "m.tfc")
    again = tfir.load(tmp_path / "m.tfc")
    x = ids(3, 4)
    found = again(x)
    assert list(found) == ["logits", "hidden", "nothing"]
    assert torch.equal(found["logits"], exe(x)["logits"])
    assert again.calling == exe.calling == Calling.of(exe.calling.text)


def test_programs_that_were_exported_already() -> None:
    model = Tied().eval()
    batch = torch.export.Dim("batch", max=64)
    program = torch.export.export(model, (ids(2, 5),), dynamic_shapes={"ids": {0: batch}})
    exe = tfir.compile(program)
    x = ids(7, 5)
    torch.testing.assert_close(exe(x)["logits"], model(x)["logits"], rtol=1e-4, atol=1e-5)
    (fact,) = exe.symbols.values()
    assert (fact.low, fact.high) == (1, 64)


def test_which_dims_stay_open_can_be_chosen() -> None:
    model = Tied().eval()
    example = (ids(2, 5),)
    assert list(tfir.compile(model, example, dynamic=("batch",)).symbols) == ["batch"]
    assert not tfir.compile(model, example, dynamic=()).symbols
    named = tfir.compile(model, example, dynamic={"ids": {1: "tokens"}})
    assert list(named.symbols) == ["tokens"] and str(named.inputs[0].type) == "i64[2, tokens]"


class FixedBySize(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.view(-1, 2, 5) if x.shape[1] == 10 else x


class SecondRow(nn.Module):
    def forward(self, x: Any) -> Any:
        return x[1] * x


def test_what_is_fixed_after_all_is_said_aloud() -> None:
    with pytest.warns(TorchNote, match="axis 1 \\(seq\\) of 'x' is fixed to 10"):
        exe = tfir.compile(FixedBySize(), (torch.ones(3, 10),))
    assert exe(torch.ones(4, 10)).shape == (4, 2, 5)
    with pytest.warns(TorchNote, match="'batch' is at least 2"):
        exe = tfir.compile(SecondRow(), (torch.ones(3, 4),))
    assert exe.symbols["batch"].low == 2 and exe.symbols["seq"].low == 1


class ByClass(nn.Module):
    def forward(self, pair: Any, *, factor: int = 2) -> Any:
        return Pair(pair.first * factor, [pair.second + 1, {"x": pair.first}])


def test_classes_and_plain_numbers_in_nests() -> None:
    exe = tfir.compile(ByClass(), {"pair": Pair(torch.ones(2, 3), torch.ones(2, 3)), "factor": 3})
    found = exe(Pair(torch.full((4, 2), 2.0), torch.ones(4, 2)), factor=3)
    assert isinstance(found, Pair) and found.first[0, 0] == 6 and found.second[1]["x"][0, 0] == 2
    with pytest.raises(CompilerError) as caught:
        exe(Pair(torch.ones(2, 3), torch.ones(2, 3)), factor=4)
    assert caught.value.codes == (Code.INPUT_COUNT,) and "factor is 4" in str(caught.value)
    with pytest.raises(CompilerError) as caught:
        exe(Pair(torch.ones(2, 3), torch.ones(2, 3)), factor=3, other=1)
    assert caught.value.codes == (Code.INPUT_NAME,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.LayerNorm(24), nn.Linear(24, 4)).eval().to(dtype)
    exe = tfir.compile(model, (torch.ones(2, 16, dtype=dtype),))
    x = torch.randn(5, 16, dtype=dtype)
    rtol = {torch.float64: 1e-7}.get(dtype, 3e-2)
    torch.testing.assert_close(exe(x), model(x), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", QUICK)
def test_model_types_agree_with_eager(name: str) -> None:
    row = torch_zoo.check(next(c for c in torch_zoo.CASES if c.name == name))
    assert row["agrees"], row
    assert bool(row["notes"]) == (name == "mamba"), row  # its loop over the tokens fixes their number


@pytest.mark.long
def test_sixty_model_types_agree_with_eager() -> None:
    rows = [torch_zoo.check_apart(case) for case in torch_zoo.CASES]
    wrong = [r["name"] for r in rows if not r["agrees"]]
    assert len(rows) >= 60
    assert set(wrong) <= set(torch_zoo.KNOWN), [r for r in rows if r["name"] in set(wrong) - set(torch_zoo.KNOWN)]
    assert len(wrong) <= 5


# --- ops ---------------------------------------------------------------------------------------------------------------------------

def test_the_table_has_the_names_and_the_arguments_of_aten() -> None:
    for name in (*ATEN, *REFUSED):
        if name.startswith("transformers."):
            continue
        space, rest = ("prims", name.removeprefix("prims.")) if name.startswith("prims.") else ("aten", name)
        base, _, overload = rest.partition(".")
        schema = getattr(getattr(getattr(torch.ops, space), base), overload or "default")._schema
        if name in REFUSED:
            continue
        taken = [a for a in schema.arguments if a.name not in _DROPPED]
        named = {a.name: 0 for a in taken if a.kwarg_only}
        signature = inspect.signature(ATEN[name])
        for count in (len([a for a in taken if not a.kwarg_only]), len([a for a in taken if not a.kwarg_only and not a.has_default_value()])):
            signature.bind(None, *[0] * count, **named)


# --- torch.compile -----------------------------------------------------------------------------------------------------------------


def test_torch_compile_one_graph_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    from trustformers_ir import torch_backend

    model = Tied().eval()
    made: list[Any] = []
    compile_model = torch_backend.compile_model
    monkeypatch.setattr(torch_backend, "compile_model", lambda *args: made.append(args) or compile_model(*args))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=torch_backend.tfir, dynamic=True)
    with torch.no_grad():
        for shape in ((2, 5), (3, 8), (4, 3)):
            x = ids(*shape)
            torch.testing.assert_close(compiled(x)["logits"], model(x)["logits"], rtol=1e-4, atol=1e-5)
        assert len(made) == 1
        model.inner.weight.mul_(2)
        with pytest.warns(TorchNote, match="a parameter has changed"):
            torch.testing.assert_close(compiled(x)["logits"], model(x)["logits"], rtol=1e-4, atol=1e-5)


def test_torch_compile_does_not_train() -> None:
    from trustformers_ir.torch_backend import tfir as backend

    torch._dynamo.reset()
    with pytest.raises(Exception, match="TFC3025"):
        torch.compile(Tied().eval(), backend=backend)(ids(2, 5))


def test_torch_finds_the_backend_by_its_entry_point() -> None:
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert '[project.entry-points.torch_dynamo_backends]\ntfir = "trustformers_ir.torch_backend:tfir"' in text


# --- factories ---------------------------------------------------------------------------------------------------------------------


def test_factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import torch\ndef make():\n    return torch.nn.Linear(4, 2).eval(), (torch.ones(2, 4),)\ndef broken():\n    return 1 / 0\n"
    (tmp_path / "factory_of_test.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    exe = tfir.compile("factory_of_test:make")
    assert exe(torch.ones(5, 4)).shape == (5, 2)
    for name, message in (("broken", "raised ZeroDivisionError"), ("absent", "has no 'absent'")):
        with pytest.raises(CompilerError) as caught:
            tfir.compile(f"factory_of_test:{name}")
        assert caught.value.codes == (Code.FACTORY,) and message in str(caught.value)
        assert name == "absent" or "factory_of_test.py:5" in str(caught.value)
    with pytest.raises(CompilerError) as caught:
        tfir.compile("no_such_module_here:make")
    assert caught.value.codes == (Code.FACTORY,)
