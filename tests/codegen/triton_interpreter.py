"""Triton's interpreter, corrected, as the runtime uses it."""

from __future__ import annotations

from trustformers_ir.runtime.gpu.corrections import Libdevice, corrected

libdevice = Libdevice()
__all__ = ["corrected", "libdevice"]
