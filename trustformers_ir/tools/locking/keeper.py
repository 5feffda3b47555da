"""What ``--lock`` and ``--bom`` of a command do around its build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trustformers_ir.ir.atomic import check_writable
from trustformers_ir.tools import console
from trustformers_ir.tools.locking.bom import write_bom
from trustformers_ir.tools.locking.lock import Watch
from trustformers_ir.tools.locking.request import Made, Request


@dataclass(frozen=True)
class Keeper:
    """``request`` is what to build; ``watch`` is None where nothing is kept of it."""

    request: Request
    watch: Watch | None = None
    lock: str | None = None
    bom: str | None = None

    @classmethod
    def of(cls, request: Request, lock: str | None, bom: str | None) -> Keeper:
        """Looks at the inputs before the build. ``CompilerError`` for what cannot be locked, or written."""
        kept = [name for name in (lock, bom) if name is not None]
        if not kept:
            return cls(request)
        for name in kept:
            check_writable(name)
            if kept.count(name) > 1 or name in (request.model, *request.outputs):
                raise console.usage(f"'{name}' is named twice", "give each output its own name")
        pinned = request.pinned()
        return cls(pinned, Watch(pinned), lock, bom)

    def keep(self, made: Callable[[], Made]) -> None:
        """Writes what was asked for, after the build, of which ``made`` tells."""
        if self.watch is None:
            return
        found = self.watch.locked(made(), self.lock or self.bom or "")
        if self.lock is not None:
            found.write(self.lock)
            console.say(f"{self.lock}: {len(found.inputs)} inputs, {len(found.outputs)} outputs")
        if self.bom is not None:
            write_bom(self.bom, found)
            console.say(f"{self.bom}: bill of materials")
