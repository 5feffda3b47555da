"""llama.cpp through its C interface: as much of it as reads tokens.

The shared libraries are those of a package that has one for every CPU, of which it picks the best itself: ``make llama.cpp`` fetches it. Parameters
are its defaults, held as bytes, so the layout of their structs does not matter: the cache of keys and values is in f16, as its users have it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

_MODES = ("libggml-base.so*", "libggml.*", "libllama.*")


class _Parameters(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * 512)]  # as large as any, and returned through memory as they are


class _Batch(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * 56)]


class LlamaCpp:
    """A model that is being read by llama.cpp, with its best code for this CPU."""

    def __init__(self, libraries: Path, model: str, threads: int) -> None:
        found = [next(iter(sorted(libraries.glob(pattern)))) for pattern in _MODES]
        loaded = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in found]
        ggml, llama = loaded[1], loaded[2]
        pointer, number = ctypes.c_void_p, ctypes.c_int

        def function(library: Any, name: str, result: Any, *arguments: Any) -> Any:
            f = getattr(library, name)
            f.restype, f.argtypes = result, list(arguments)
            return f

        self._quiet = ctypes.CFUNCTYPE(None, number, ctypes.c_char_p, pointer)(lambda level, text, data: None)
        function(llama, "llama_log_set", None, pointer, pointer)(ctypes.cast(self._quiet, pointer), None)
        function(ggml, "ggml_backend_load_all_from_path", None, ctypes.c_char_p)(f"{libraries}/".encode())
        function(llama, "llama_backend_init", None)()
        self.features = str(function(llama, "llama_print_system_info", ctypes.c_char_p)().decode())
        defaults = function(llama, "llama_model_default_params", _Parameters)()
        self._model = function(llama, "llama_model_load_from_file", pointer, ctypes.c_char_p, _Parameters)(model.encode(), defaults)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot read {model}")
        defaults = function(llama, "llama_context_default_params", _Parameters)()
        self._context = function(llama, "llama_init_from_model", pointer, pointer, _Parameters)(self._model, defaults)
        function(llama, "llama_set_n_threads", None, pointer, number, number)(self._context, threads, threads)
        self._memory = function(llama, "llama_get_memory", pointer, pointer)(self._context)
        self._clear = function(llama, "llama_memory_clear", None, pointer, ctypes.c_bool)
        self._batch = function(llama, "llama_batch_get_one", _Batch, pointer, number)
        self._decode = function(llama, "llama_decode", number, pointer, _Batch)
        self._scores = function(llama, "llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), pointer, number)
        words = function(llama, "llama_vocab_n_tokens", number, pointer)
        vocabulary = function(llama, "llama_model_get_vocab", pointer, pointer)
        self.vocabulary = int(words(vocabulary(self._model)))

    def clear(self) -> None:
        """Forgets what was read."""
        self._clear(self._memory, True)

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Reads the next tokens; the scores after the last one, valid until more are read."""
        tokens = np.ascontiguousarray(ids, np.int32)
        if self._decode(self._context, self._batch(tokens.ctypes.data, len(tokens))):
            raise SystemExit("llama.cpp could not read the tokens")
        return np.ctypeslib.as_array(self._scores(self._context, -1), (self.vocabulary,))
