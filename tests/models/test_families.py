"""What holds for every family of models: presets that are models, and the table of them in docs/cli.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.ir.diagnostics import CompilerError
from trustformers_ir.models.registry import FAMILIES, find_family

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_preset_and_architecture_is_a_model(model_type: str) -> None:
    family = find_family(model_type)
    for preset in ("base", *family.presets):
        assert random_model(f"random:{model_type}?preset={preset}&num_hidden_layers=1").weights
    for architecture in family.architectures:
        assert random_model(f"random:{model_type}?architecture={architecture}&num_hidden_layers=1").metadata["architecture"] == architecture


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_page_lists_them(model_type: str) -> None:
    family = find_family(model_type)
    (row,) = (line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{model_type}` |"))
    _, _, architectures, presets, _ = (cell.strip() for cell in row.split("|"))
    assert architectures == ", ".join(f"`{name}`" for name in family.architectures)
    assert set(presets.split(", ")) == {"base", *family.presets}


def test_unknown_presets() -> None:
    with pytest.raises(CompilerError) as caught:
        random_model("random:vit?preset=huga")
    (problem,) = caught.value.diagnostics
    assert "did you mean 'huge'?" in problem.help and "base, huge, large, small, tiny" in problem.help
