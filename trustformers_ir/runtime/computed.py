"""Dims whose values the code itself computes, as the manifest's metadata tells of them."""

from __future__ import annotations

import json

from trustformers_ir.ir.abi import COMPUTED_KEY, Manifest
from trustformers_ir.ir.dims import Dim, parse_dim, symbols_of


def computed_dims(manifest: Manifest) -> dict[str, Dim]:
    """The symbols, with what they are at most in terms of symbols that inputs determine. ``ValueError`` where the metadata does not say that."""
    text = manifest.metadata.get(COMPUTED_KEY)
    if text is None:
        return {}
    given = json.loads(text)
    if not isinstance(given, dict):
        raise ValueError("it is no table")
    found = {name: parse_dim(str(most)) for name, most in given.items()}
    known = {name for name, _ in manifest.symbols}
    if not found.keys() <= known:
        raise ValueError("it names a dim that there is not")
    if symbols_of(*found.values()) & found.keys() or not symbols_of(*found.values()) <= known:
        raise ValueError("what a dim is at most does not follow from inputs")
    return found
