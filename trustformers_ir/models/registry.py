"""Which file of ``models/`` describes which ``model_type``. A family is imported when it is asked for."""

from __future__ import annotations

import importlib
from difflib import get_close_matches

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.models.family import Family

FAMILIES = {
    "bert": "trustformers_ir.models.bert",
    "cohere": "trustformers_ir.models.cohere",
    "deit": "trustformers_ir.models.deit",
    "falcon": "trustformers_ir.models.falcon",
    "gemma": "trustformers_ir.models.gemma",
    "gemma2": "trustformers_ir.models.gemma2",
    "gemma3_text": "trustformers_ir.models.gemma3",
    "gpt2": "trustformers_ir.models.gpt2",
    "gpt_neo": "trustformers_ir.models.gpt_neo",
    "gpt_neox": "trustformers_ir.models.gpt_neox",
    "gptj": "trustformers_ir.models.gptj",
    "llama": "trustformers_ir.models.llama",
    "mistral": "trustformers_ir.models.mistral",
    "mixtral": "trustformers_ir.models.mixtral",
    "phi3": "trustformers_ir.models.phi3",
    "qwen2": "trustformers_ir.models.qwen2",
    "qwen3": "trustformers_ir.models.qwen3",
    "stablelm": "trustformers_ir.models.stablelm",
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
