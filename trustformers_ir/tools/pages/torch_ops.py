"""The page of the ATen ops that compile and of those that are refused, from the table of the front end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trustformers_ir.frontend.torch_export import aten
from trustformers_ir.frontend.torch_export.registry import ATEN, REFUSED


def page() -> str:
    """``docs/torch_ops.md``."""
    lines = [
        "# Ops of torch",
        "",
        "<!-- Written by `make docs` from trustformers_ir/frontend/torch_export/aten/. Edit that, not this page. -->",
        "",
        f"{len(ATEN)} overloads of {len({n.rpartition('.')[0] for n in ATEN})} ATen ops are written with ours; torch takes every other op that it",
        "can apart into these (`torch.export`'s decompositions and the rest of `torch._decomp`). What is left is refused, with the line that",
        "calls it. [torch.md](torch.md) says how.",
    ]
    for family in aten.FAMILIES:
        names = [n for n, build in ATEN.items() if _home(build) == family.__name__]
        if names:
            title = family.__name__.rpartition(".")[2]
            lines += ["", f"## {title}", "", (family.__doc__ or "").strip().partition("\n")[0], "", ", ".join(f"`{n}`" for n in _short(names))]
    lines += ["", "## Refused", "", "| why | instead | ops |", "|---|---|---|"]
    groups: dict[tuple[str, str], list[str]] = {}
    for name, (why, help, _) in REFUSED.items():
        groups.setdefault((why, help), []).append(name)
    lines += [f"| {why} | {help} | {', '.join(f'`{n}`' for n in _short(names))} |" for (why, help), names in groups.items()]
    return "\n".join(lines) + "\n"


def _home(build: Callable[..., Any]) -> str:
    return build.__module__


def _short(names: list[str]) -> list[str]:
    return sorted(n.removesuffix(".default") for n in names)
