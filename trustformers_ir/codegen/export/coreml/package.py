"""The package ``coremltools`` (an optional extra), loaded without what it says of Apple's libraries, which are on Apple's systems only; and what it
writes, without what differs from one time to the next."""

from __future__ import annotations

import json
import logging
import uuid
from pathlib import Path
from typing import Any

from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.digests import file_digest, tree_files

MARKER = "Manifest.json"  # a file that every package has


def coremltools_module() -> Any:
    """``coremltools``. ``MISSING_DEPENDENCY``"""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        import coremltools
    except ImportError as error:
        message = "Core ML packages need the package coremltools"
        raise CompilerError.of(Code.MISSING_DEPENDENCY, message, help="pip install 'trustformers_ir[coreml]'") from error
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    return coremltools


SPECIFICATION = "com.apple.CoreML/model.mlmodel"  # below the folder Data
DATED = "com.github.apple.coremltools.conversion_date"  # metadata


def settle(folder: Path) -> None:
    """Makes the package in ``folder`` depend on nothing but the model: without the day, maps in the order of their keys, and items named by what they
    hold where coremltools draws names at random. Called once, when the package is whole."""
    from coremltools.proto import Model_pb2

    path = folder / "Data" / SPECIFICATION
    specification = Model_pb2.Model()
    specification.ParseFromString(path.read_bytes())
    specification.description.metadata.userDefined.pop(DATED, None)
    path.write_bytes(specification.SerializeToString(deterministic=True))
    manifest = json.loads((folder / MARKER).read_text("utf-8"))
    items = manifest["itemInfoEntries"]
    names = {old: _name(folder / "Data", item["path"]) for old, item in items.items()}
    manifest["itemInfoEntries"] = {names[old]: item for old, item in items.items()}
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    (folder / MARKER).write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", "utf-8")


def _name(data: Path, item: str) -> str:
    """A UUID out of the bytes of an item, which is a file or a folder of files."""
    rows = [f"{path.relative_to(data).as_posix()} {file_digest(path)}" for path in tree_files(data / item)]
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "\n".join(rows)))
