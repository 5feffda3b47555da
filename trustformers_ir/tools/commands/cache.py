"""``tfc cache``: the compiled checkpoints, and the kernels of GPUs, that are kept for the next time."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from trustformers_ir.codegen.triton import kept
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.env import cache_folder
from trustformers_ir.runtime import container
from trustformers_ir.runtime.cache import Entry, opened
from trustformers_ir.tools import console
from trustformers_ir.tools.commands.options import Json


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove them all.")] = False,
    json: Json = False,
) -> None:
    """Show or clear the compiled checkpoints and kernels that are kept."""
    try:
        found = opened()
    except OSError as error:
        help = "name another folder with TFIR_CACHE_DIR"
        raise CompilerError.of(Code.UNREADABLE, f"the cache cannot be used: {error}", Where(file=str(cache_folder())), help) from None
    kernels = kept.opened()
    if clear:
        removed, fewer = found.clear(), 0 if kernels is None else kernels.clear()
        console.say(f"{removed} removed from {found.folder}" + (f", and {fewer} kernels" if fewer else ""))
        if json:
            console.print_json({"folder": str(found.folder), "removed": removed, "kernels": fewer})
        return
    entries = found.entries()
    rows, total = [_described(e) for e in reversed(entries)], sum(e.bytes for e in entries)
    sizes = [] if kernels is None else [status.st_size for _, status in kernels.entries()]
    if json:
        about = {"folder": str(found.folder), "limit": found.limit, "bytes": total, "entries": rows}
        console.print_json(about | {"kernels": {"count": len(sizes), "bytes": sum(sizes)}})
        return
    columns = ("name", "target", "size", "last used", "file")
    table = [[str(r["name"]), str(r["target"]), console.quantity(int(str(r["bytes"]))), str(r["used"]), str(r["file"])] for r in rows]
    if table:
        console.print_table(table, columns)
    console.say(f"{len(rows)} in {found.folder}: {console.quantity(total)} of at most {console.quantity(found.limit)}")
    if kernels is not None and sizes:
        console.say(f"{len(sizes)} kernels of GPUs in {kernels.folder}: {console.quantity(sum(sizes))} of at most {console.quantity(kernels.limit)}")


def _described(entry: Entry) -> dict[str, object]:
    """An entry that is broken is listed too: it goes when somebody asks for it."""
    try:
        manifest = container.read(entry.path).manifest
        name, target = manifest.name, manifest.target.name
    except CompilerError:
        name, target = "(broken)", ""
    used = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.used))
    return {"name": name, "target": target, "bytes": entry.bytes, "used": used, "file": entry.path.name}
