"""Random models of ``transformers`` on the disk, and what they compute: shared by the tests of model families."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trustformers_ir.ir.core import Module
from trustformers_ir.ir.interpreter import evaluate


def saved_model(make: Callable[[], Any], folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model, with parameters large enough to matter, saved into the folder."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.ndim == 1 else 0.0, 0.3)
    model = model.to(dtype)
    model.save_pretrained(folder)
    return model


def theirs(model: Any, inputs: Mapping[str, np.ndarray], dtype: torch.dtype = torch.float64) -> list[np.ndarray]:
    """All outputs of the model, computed in that dtype."""
    with torch.no_grad():
        out = copy.deepcopy(model).to(dtype)(**{k: torch.tensor(v) for k, v in inputs.items()})
    return [t.numpy() for t in out.to_tuple()]


def listed(results: Any) -> list[np.ndarray]:
    """Outputs as a list, whether there is one or many."""
    return list(results) if isinstance(results, tuple) else [results]


def ours(module: Module, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs of the module, computed in float64."""
    return listed(evaluate(module, wide=True, **inputs))


def output_names(module: Module) -> list[str]:
    return [v.name for v in module.main.outputs]
