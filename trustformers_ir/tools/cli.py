"""``tfc``, the command line.

Exit codes: 0 done; 1 a check did not hold; 2 the input or the request is at fault; 3 our bug. Errors go to stderr as
``error[TFC1234]: …`` with place and help, without a traceback unless ``--debug``. Ctrl-C gives 130.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

import trustformers_ir as tfir
from trustformers_ir.ir import env
from trustformers_ir.ir.diagnostics import Code, CompilerError, Diagnostic, DiagnosticError, InternalError, Where

# typer carries its own copy of click or depends on it, by version: its usage errors share the base of its BadParameter.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

INTERRUPTED = 130
SHOWN_REQUEST = 200  # characters of the command line in a message

# What there is, in the order of the help. A command's module is imported when the command is chosen: `tfc --help` waits for none of them.
COMMANDS = {
    "compile": "Compile MODEL into an artifact that runs without the compiler.",
    "run": "Run MODEL, compiling it first unless it is an artifact.",
    "eval": "Measure how well MODEL predicts a text.",
    "verify": "Check that files compute the same function.",
    "ci": "Make the files of a pipeline, and check each of them.",
    "inspect": "Show what a file holds: inputs, outputs, weights, ops, kernels.",
    "opt": "Run passes over FILE and print the result.",
    "targets": "List what this machine can compile for and execute.",
    "export": "Write MODEL for other systems.",
    "rebuild": "Build again what a lock says, and compare every byte.",
    "bench": "Time MODEL.",
    "tune": "Find faster schedules for MODEL on this machine.",
    "cache": "Show or clear the compiled checkpoints and kernels that are kept.",
}


def application(chosen: str | None) -> typer.Typer:
    """The command line, in which only ``chosen`` is more than a line of the help."""
    app = typer.Typer(name="tfc", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback()(_options)
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"trustformers_ir.tools.commands.{name}") if name == chosen else None
        app.command(name, help=summary)(getattr(module, name, _not_chosen))
    return app


def _not_chosen() -> None:
    """Stands for a command whose module was not imported."""


def _show_version(value: bool) -> None:
    if value:
        print(f"tfc {tfir.__version__}")
        raise typer.Exit


def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error; may stand anywhere.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """A compiler for transformer models: from checkpoints to native code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"] or ["--help"]
    try:
        debug = debug or env.DEBUG.get()
        chosen = next((w for w in words if not w.startswith("-")), None)
        code: Any = application(chosen)(words, prog_name="tfc", standalone_mode=False)
        if code == INTERRUPTED:  # some versions of typer turn Ctrl-C into this number, others into Abort
            raise KeyboardInterrupt
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; the flush at exit is to be quiet too
        return 0
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        failure = placed(explain(error), words)
        print(failure, file=sys.stderr)
        return failure.exit_code


def explain(error: Exception) -> DiagnosticError:
    """What went wrong, in our own terms: what nobody foresaw is a bug of ours."""
    if isinstance(error, DiagnosticError):
        return error
    if isinstance(error, UsageError):
        text: Any = error
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "tfc"
        return CompilerError.of(Code.USAGE, text.format_message(), help=f"{path} --help")
    if isinstance(error, MemoryError):
        return CompilerError.of(Code.OUT_OF_MEMORY, str(error) or "memory ran out")
    if isinstance(error, OSError) and error.filename is not None:
        return CompilerError.of(Code.of_reading(error), f"'{error.filename}': {error.strerror}", Where(file=str(error.filename)), "look at the path")
    return InternalError.of(Code.INTERNAL, f"{type(error).__name__}: {error}")


def placed(failure: DiagnosticError, words: Sequence[str]) -> DiagnosticError:
    """The same problems; those that lie in no file are in the request itself."""
    request = _cut(shlex.join(["tfc", *words]))
    return type(failure)(*(_asked_by(request, d) for d in failure.diagnostics))


def _asked_by(request: str, d: Diagnostic) -> Diagnostic:
    return d if d.where.file is not None or d.where.line is not None else replace(d, where=replace(d.where, request=request))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_REQUEST else f"{text[:SHOWN_REQUEST]}…"


if __name__ == "__main__":
    sys.exit(main())
