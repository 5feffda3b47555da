"""The text form of modules: ``print_module``, ``parse_module``, ``read_module``. Importing this makes ``str(module)`` its text.

The parser is imported when it is first asked for: it uses the verifier, which uses the printer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trustformers_ir.ir.core import set_module_printer
from trustformers_ir.ir.text.printer import print_function, print_module, print_operation

if TYPE_CHECKING:
    from trustformers_ir.ir.text.parser import parse_module as parse_module
    from trustformers_ir.ir.text.parser import read_module as read_module

__all__ = ["parse_module", "print_function", "print_module", "print_operation", "read_module"]

set_module_printer(print_module)


def __getattr__(name: str) -> Any:
    if name in ("parse_module", "read_module"):
        return getattr(importlib.import_module("trustformers_ir.ir.text.parser"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
