"""Arrays that the command line names: ``--input NAME=FILE.npy``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.tools import console


def load_arrays(inputs: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of options ``NAME=FILE.npy``."""
    arrays: dict[str, np.ndarray] = {}
    for entry in inputs:
        name, equals, path = entry.partition("=")
        if not equals or not name or not path:
            raise console.usage(f"--input takes NAME=FILE.npy, not '{entry}'", "--input input_ids=ids.npy")
        if name in arrays:
            raise CompilerError.of(Code.INPUT_NAME, f"input '{name}' is given twice", help="give each input once")
        arrays[name] = _load_array(path)
    return arrays


def _load_array(path: str) -> np.ndarray:
    """A ``.npy`` file, mapped: a lying header allocates nothing."""
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise CompilerError.of(Code.FILE_NOT_FOUND, f"'{path}' does not exist", Where(file=path), "look at the path") from None
    except OSError as error:
        raise CompilerError.of(Code.UNREADABLE, f"cannot read '{path}': {error.strerror or error}", Where(file=path), "look at the path") from error
    except Exception as error:  # numpy reads the header as Python source, which can fail in many ways
        help = "write it with numpy.save, without pickled objects"
        raise CompilerError.of(Code.BAD_ARRAY, f"'{path}' is not a .npy file of numbers: {error}", Where(file=path), help) from error
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        raise CompilerError.of(Code.BAD_ARRAY, f"'{path}' holds several arrays", Where(file=path), "write one array with numpy.save")
    return np.ascontiguousarray(loaded) if loaded.ndim else np.array(loaded)
