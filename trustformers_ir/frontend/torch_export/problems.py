"""What is wrong with a program of torch, gathered: each op at each line of the user's once, however often a loop calls it."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from trustformers_ir.frontend.torch_export.registry import ATEN, Refused
from trustformers_ir.frontend.torch_export.sites import Origin
from trustformers_ir.ir.diagnostics import Code, CompilerError, Diagnostic, Where


class Problems:
    """Gathers diagnostics at lines of the user's code."""

    def __init__(self) -> None:
        self._found: dict[tuple[Code, str, str], tuple[Diagnostic, int]] = {}

    def add(self, code: Code, message: str, origin: Origin, help: str = "", op: str | None = None) -> None:
        site = origin.shown
        location = site.location
        where = Where(op=op) if location is None else Where(location.file, location.line, op=op)
        key = (code, str(where), message)
        known = self._found.get(key)
        text = f"{message}\n{origin.through}" if origin.through else message
        diagnostic = Diagnostic(code, text, where, help, site.source)
        self._found[key] = (diagnostic, 1 if known is None else known[1] + 1)

    def refused(self, origin: Origin, what: str, refused: Refused) -> None:
        """An op that cannot be compiled."""
        code = Code.TORCH_DATA_DEPENDENT if refused.dynamic else Code.TORCH_OP
        self.add(code, f"{what}: {refused}", origin, refused.help)

    @staticmethod
    def missing(target: Any) -> tuple[str, str]:
        """Why an op without a function cannot be compiled, and what is nearest to it."""
        name = str(target).removeprefix("aten.").removeprefix("prims.")
        namespace = getattr(target, "namespace", "")
        if namespace not in ("aten", "prims", ""):
            return "an op of another library", "write it with functions of torch, which can be compiled"
        base = name.partition(".")[0]
        others = sorted(n for n in ATEN if n.partition(".")[0] == base)
        if others:
            return f"the form '{name}' is not compiled", f"the forms {', '.join(others)} are"
        near = get_close_matches(base, {n.partition(".")[0] for n in ATEN}, 3, 0.7)
        nearest = f"near to it are {', '.join(near)}; " if near else ""
        return "the op is not compiled", f"{nearest}docs/torch_ops.md lists the ops that are"

    def check(self) -> None:
        """Raises when anything was gathered."""
        if self._found:
            raise CompilerError(*(self._counted(d, n) for d, n in self._found.values()))

    @staticmethod
    def _counted(diagnostic: Diagnostic, times: int) -> Diagnostic:
        if times == 1:
            return diagnostic
        return Diagnostic(diagnostic.code, f"{diagnostic.message}\n{times} times", diagnostic.where, diagnostic.help, diagnostic.source)

    def __len__(self) -> int:
        return len(self._found)
