"""What Triton makes of a kernel."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Binary:
    """A kernel's machine code, in which its function is called ``symbol``, its assembly, and what a launch has to ask for: bytes of shared memory.
    ``registers`` of a thread, and how many of its values went to memory for want of one. ``reserved``: pointers that the code takes besides the
    function's own, the first one to ``work`` bytes for each program."""

    name: str
    symbol: str
    code: bytes
    assembly: str
    shared: int
    warps: int
    registers: int
    spilled: int
    reserved: int = 0
    work: int = 0
    work_alignment: int = 1

    @property
    def matrix_instructions(self) -> dict[str, int]:
        """How often each instruction occurs that multiplies matrices (PTX ISA, sections on mma and wgmma; CDNA3 ISA, section on MFMA)."""
        words = re.findall(r"^\s*(?:@\S+\s+)?((?:wgmma\.mma_async|mma\.sync|v_mfma)[\w.]*)", self.assembly, re.MULTILINE)
        return dict(sorted(Counter(words).items()))
