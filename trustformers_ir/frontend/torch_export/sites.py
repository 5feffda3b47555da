"""Where a node of torch's graph comes from: the frames that torch recorded, as a line of the user's code."""

from __future__ import annotations

import contextlib
import linecache
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any

from trustformers_ir.ir.core import Location
from trustformers_ir.ir.tracing import Site, is_internal, shown_path

_FRAME = re.compile(r'^\s*File "(?P<file>[^"\n]+)", line (?P<line>\d+), in (?P<function>.+)$', re.MULTILINE)
_LIBRARIES = tuple({sysconfig.get_path(p) for p in ("stdlib", "platstdlib", "purelib", "platlib")})


@dataclass(frozen=True)
class Frame:
    file: str
    line: int
    function: str

    @property
    def ours(self) -> bool:
        """Of torch or of this package: nobody looks for a mistake there."""
        return _is_machinery(self.file)

    @property
    def library(self) -> bool:
        return self.file.startswith(_LIBRARIES) or self.file.startswith("<")

    @property
    def site(self) -> Site:
        location = Location(shown_path(self.file), self.line, "" if self.function == "<module>" else self.function)
        return Site(location, linecache.getline(self.file, self.line).strip())

    def __str__(self) -> str:
        return f"{shown_path(self.file)}:{self.line}"


@lru_cache(maxsize=4096)
def _is_machinery(file: str) -> bool:
    parts = file.replace(os.sep, "/").split("/")
    inside = "torch" in parts and ("site-packages" in parts or "dist-packages" in parts)
    return inside or file.startswith("<") or is_internal(file) or parts[-1] == "torch_backend.py"


@dataclass(frozen=True)
class Origin:
    """The innermost line outside of torch, and the innermost one of the user's own when that lies in a library."""

    site: Site
    caller: Site | None = None

    @property
    def shown(self) -> Site:
        """Where an error is shown: the user's own line if there is one."""
        return self.caller or self.site

    @property
    def through(self) -> str:
        """What an error adds when the op is called in a library on behalf of the user's line."""
        return "" if self.caller is None or self.site.location is None else f"called in {self.site.location}"


NOWHERE = Origin(Site(None))


def origin_of(frames: list[Frame]) -> Origin:
    """From frames, the outermost first."""
    outside = [f for f in frames if not f.ours]
    if not outside:
        return NOWHERE
    own = [f for f in outside if not f.library]
    inner = outside[-1]
    return Origin(inner.site, own[-1].site if own and inner.library else None)


def frames_in(text: str) -> list[Frame]:
    """The frames that a printed stack trace names, of those within the program: what called us comes before the last frame of ours."""
    found = [Frame(m["file"], int(m["line"]), m["function"]) for m in _FRAME.finditer(text)]
    return found[max((n + 1 for n, f in enumerate(found) if is_internal(f.file)), default=0) :]


@lru_cache(maxsize=4096)
def _origin_in(text: str) -> Origin:
    return origin_of(frames_in(text))


def node_origin(node: Any) -> Origin:
    """Where a node comes from."""
    text = node.meta.get("stack_trace")
    return _origin_in(text) if text else NOWHERE


@contextlib.contextmanager
def whole_traces() -> Iterator[None]:
    """While a module is exported: nodes record the lines of helpers of ``forward`` too. By itself torch records those of methods of that name."""
    import torch
    from torch.fx.experimental import proxy_tensor

    tracer: Any = getattr(proxy_tensor, "_ModuleStackTracer", None)
    known = getattr(tracer, "_filter_traceback_frames", None)
    if known is None:
        yield
        return
    inside = os.path.dirname(torch.__file__) + os.sep

    def frames(self: Any, summary: Any) -> Any:
        first = next((n for n, f in enumerate(summary) if f.name == "forward"), len(summary))
        return type(summary).from_list([f for f in summary[first:] if not f.filename.startswith(inside)])

    tracer._filter_traceback_frames = frames
    try:
        yield
    finally:
        tracer._filter_traceback_frames = known


def error_frames(error: BaseException) -> list[Frame]:
    """The frames of a traceback."""
    found: list[Frame] = []
    at: TracebackType | None = error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        found.append(Frame(code.co_filename, at.tb_lineno, getattr(code, "co_qualname", code.co_name).replace("<locals>.", "")))
        at = at.tb_next
    return found
