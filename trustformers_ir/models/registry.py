"""Which file of ``models/`` describes which ``model_type``. A family is imported when it is asked for."""

from __future__ import annotations

import importlib
from difflib import get_close_matches

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.models.family import Family

FAMILIES = {
    "bert": "trustformers_ir.models.bert",
    "deit": "trustformers_ir.models.deit",
    "gpt2": "trustformers_ir.models.gpt2",
    "llama": "trustformers_ir.models.llama",
    "mistral": "trustformers_ir.models.mistral",
    "phi3": "trustformers_ir.models.phi3",
    "qwen2": "trustformers_ir.models.qwen2",
    "qwen3": "trustformers_ir.models.qwen3",
    "vit": "trustformers_ir.models.vit",
}
"""``model_type`` -> the module that has its ``FAMILY``."""


def find_family(model_type: str, where: Where | None = None, code: Code = Code.UNKNOWN_MODEL_TYPE) -> Family:
    """The family of that ``model_type``; an error names the known ones."""
    if model_type not in FAMILIES:
        near = get_close_matches(model_type, FAMILIES, 1)
        help = (f"did you mean '{near[0]}'? " if near else "") + f"known are: {', '.join(sorted(FAMILIES))}"
        raise CompilerError.of(code, f"no architecture is registered for model_type '{model_type}'", where, help)
    family: Family = importlib.import_module(FAMILIES[model_type]).FAMILY
    return family
