"""``module.path:factory``: a model that Python code makes.

The factory is called without arguments. It gives a model, or a model with its example inputs. The code is imported and run as any Python that the
user starts: with the current folder first on the path.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from trustformers_ir.frontend.torch_export.sites import error_frames, origin_of
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*\Z")
_KNOWN = ("random:",)


def is_factory(name: str) -> bool:
    """Whether a text is ``module.path:factory``, and no file or random model."""
    return bool(_FACTORY.match(name)) and not name.startswith(_KNOWN) and not Path(name).exists()


def call_factory(name: str, example_inputs: Any = None) -> tuple[Any, Any]:
    """The model that a factory makes and its example inputs, those given first. ``FACTORY`` when it cannot be had."""
    path, _, attribute = name.partition(":")
    found: Any = _imported(path, name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            has = ", ".join(sorted(n for n in vars(found) if not n.startswith("_"))[:8])
            raise CompilerError.of(Code.FACTORY, f"'{path}' has no '{attribute}'", Where(request=name), f"it has {has}" if has else "")
        found = getattr(found, part)
    made = found
    if callable(found) and not _is_module(found):
        try:
            made = found()
        except CompilerError:
            raise
        except Exception as error:
            raise _failed(error, name, f"the factory raised {type(error).__name__}: {error}") from error
    if isinstance(made, tuple) and len(made) == 2 and not _is_module(made):
        model, examples = made
        return model, examples if example_inputs is None else example_inputs
    return made, example_inputs


def _imported(path: str, name: str) -> Any:
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(path)
    except CompilerError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(f"{error.name}.")):
            message = f"there is no module '{path}'"
            raise CompilerError.of(Code.FACTORY, message, Where(request=name), "it is looked for in the current folder and on PYTHONPATH") from None
        raise _failed(error, name, f"importing '{path}' raised {type(error).__name__}: {error}") from error
    except Exception as error:
        raise _failed(error, name, f"importing '{path}' raised {type(error).__name__}: {error}") from error
    finally:
        if added:
            sys.path.remove(here)


def _is_module(value: Any) -> bool:
    return any(c.__name__ == "Module" and c.__module__.startswith("torch.nn") for c in type(value).__mro__)


def _failed(error: BaseException, name: str, message: str) -> CompilerError:
    site = origin_of(error_frames(error)).shown
    where = Where(request=name) if site.location is None else Where(site.location.file, site.location.line)
    return CompilerError.of(Code.FACTORY, message, where, "call it in Python to see more", site.source)
