"""Bills of materials: what a build was made of, as CycloneDX 1.6 has it (ECMA-424), with the model as a component of type ``machine-learning-model``.

The serial number comes from the digests of the lock, and a time is written where ``SOURCE_DATE_EPOCH`` says one: equal builds have equal bills.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from math import prod
from typing import Any

import trustformers_ir as tfir
from trustformers_ir.ir import env
from trustformers_ir.ir.atomic import write_text
from trustformers_ir.ir.interpreter import argument_names, result_names
from trustformers_ir.tools.locking.lock import File, Lock
from trustformers_ir.tools.locking.request import Request

SCHEMA, SPECIFICATION = "http://cyclonedx.org/schema/bom-1.6.schema.json", "1.6"
OURS = "trustformers_ir"
SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/#trustformers_ir")


@dataclass(frozen=True)
class Described:
    """What a bill says of a model: ``family`` (``llama``) and ``architecture`` as a checkpoint names them, its ports, the number of parameters, and
    how many of them are stored in each dtype."""

    family: str | None
    architecture: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int
    dtypes: tuple[tuple[str, int], ...]


def describe(request: Request) -> Described:
    """By the front end, which reads no weights. Numbers count as parameters, integers do not."""
    module = tfir.api.to_module(request.model)
    main, dtypes = module.main, Counter[str]()
    for w in module.weights.values():
        if w.type.dtype.is_float or w.blocks is not None:
            dtypes[w.blocks.format.name.lower() if w.blocks is not None else str(w.type.dtype)] += prod(w.type.concrete({}))
    inputs = [f"{name}: {v.type}" for name, v in zip(argument_names(main), main.args, strict=True)]
    outputs = [f"{name}: {v.type}" for name, v in zip(result_names(main), main.outputs, strict=True)]
    told = module.metadata.get
    return Described(told("model_type"), told("architecture"), tuple(inputs), tuple(outputs), sum(dtypes.values()), tuple(sorted(dtypes.items())))


def write_bom(path: str, lock: Lock) -> None:
    """Writes the bill of a build that was locked."""
    write_text(path, json.dumps(bill(lock, describe(lock.request)), indent=2, ensure_ascii=False) + "\n")


def bill(lock: Lock, model: Described) -> dict[str, Any]:
    """The bill as plain data."""
    inputs = [_file(f, "input") for f in lock.inputs]
    seconds = env.SOURCE_DATE.get()
    metadata: dict[str, Any] = {} if seconds is None else {"timestamp": _time(seconds)}
    metadata["tools"] = {"components": [_package(name, version) for name, version in lock.versions.items() if "." not in name]}
    metadata["component"] = _model(lock, model)
    identity = hashlib.sha256("\n".join(f"{f.sha256} {f.path}" for f in (*lock.inputs, *lock.outputs)).encode("utf-8", "surrogatepass"))
    return {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(SPACE, identity.hexdigest())}",
        "version": 1,
        "metadata": metadata,
        "components": inputs,
        "dependencies": [{"ref": "model", "dependsOn": [c["bom-ref"] for c in inputs]}, *({"ref": c["bom-ref"]} for c in inputs)],
    }


def _model(lock: Lock, model: Described) -> dict[str, Any]:
    """The component that the bill is about; one file is it, several are parts of it."""
    options = lock.request.options
    parameters: dict[str, Any] = {
        "architectureFamily": model.family,
        "modelArchitecture": model.architecture,
        "inputs": [{"format": text} for text in model.inputs],
        "outputs": [{"format": text} for text in model.outputs],
    }
    told = {
        "parameters": str(model.parameters),
        "stored": ", ".join(f"{dtype}: {count}" for dtype, count in model.dtypes),
        "dtype": options.get("dtype"),
        "quantization": options.get("quantize"),
        "target": ",".join(t.name for t in lock.targets),
        "pipeline": ",".join(lock.pipeline),
        "sources": lock.versions.get(f"{OURS}.sources"),
    }
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": os.path.basename(os.path.normpath(lock.request.outputs[0])),
        "modelCard": {"modelParameters": {k: v for k, v in parameters.items() if v}},
        "properties": [{"name": f"{OURS}:{name}", "value": value} for name, value in told.items() if value],
    }
    if len(lock.outputs) == 1:
        component["hashes"] = _hashes(lock.outputs[0])
    else:
        component["components"] = [_file(f, "output") for f in lock.outputs]
    return component


def _file(file: File, kind: str) -> dict[str, Any]:
    about = {"bytes": str(file.bytes)} | ({"role": file.role} if file.role else {})
    properties = [{"name": f"{OURS}:{name}", "value": value} for name, value in about.items()]
    return {"type": "file", "bom-ref": f"{kind}:{file.path}", "name": file.path, "hashes": _hashes(file), "properties": properties}


def _hashes(file: File) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": file.sha256}]


def _package(name: str, version: str) -> dict[str, Any]:
    """A package that took part. LLVM and the C compiler are no packages of Python."""
    component: dict[str, Any] = {"type": "application" if name in (OURS, "llvm", "cc") else "library", "name": name, "version": version}
    return component if name in ("llvm", "cc") else component | {"purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"}


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
