"""The package ``coremltools`` (an optional extra), loaded without what it says of Apple's libraries, which are on Apple's systems only."""

from __future__ import annotations

import logging
from typing import Any

from trustformers_ir.ir.diagnostics import Code, CompilerError

MARKER = "Manifest.json"  # a file that every package has


def coremltools_module() -> Any:
    """``coremltools``. ``MISSING_DEPENDENCY``"""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        import coremltools
    except ImportError as error:
        message = "Core ML packages need the package coremltools"
        raise CompilerError.of(Code.MISSING_DEPENDENCY, message, help="pip install 'trustformers_ir[coreml]'") from error
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    return coremltools
