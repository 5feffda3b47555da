"""The pages of ``docs/`` that are written from tables in the code: ``python -m trustformers_ir.tools.docs`` rewrites them.

A test compares them with the tables.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from trustformers_ir.ir import env
from trustformers_ir.ir.atomic import write_text
from trustformers_ir.ir.diagnostics import GROUPS, Code
from trustformers_ir.tools.pages import onnx, ops, passes, torch_ops

NOTICE = "<!-- Written by `make docs` from {source}. Edit that, not this page. -->\n"


def errors() -> str:
    """The catalogue of diagnostics."""
    lines = [
        "# Errors",
        "",
        NOTICE.format(source="trustformers_ir/ir/diagnostics.py"),
        "An error is printed as `error[TFC1234]: what is wrong`, where, and `help:` what to do.",
        "All problems of one run are listed together.",
        "`tfc` exits with 1 when a check did not hold, with 2 when the input or the request is at fault, and with 3 for a bug of ours.",
    ]
    for number, title in GROUPS.items():
        lines += ["", f"## {number}xxx: {title}", "", "| code | name | title | meaning | what to do |", "|---|---|---|---|---|"]
        lines += [f"| {c.id} | `{c.name}` | {c.title} | {c.explanation} | {c.advice} |" for c in Code if c.number // 1000 == number]
    return "\n".join(lines) + "\n"


def environment() -> str:
    """The registry of environment variables."""
    lines = ["# Environment variables", "", NOTICE.format(source="trustformers_ir/ir/env.py")]
    lines += ["| variable | takes | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{v.name}` | {v.takes} | {v.default_text or _default(v.default)} | {v.meaning} |" for v in env.VARIABLES]
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors,
    "environment.md": environment,
    "onnx.md": onnx.page,
    "ops.md": ops.page,
    "passes.md": passes.page,
    "torch_ops.md": torch_ops.page,
}


def main(folder: Path = Path("docs")) -> int:
    for name, page in PAGES.items():
        write_text(folder / name, page())
        print(folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
