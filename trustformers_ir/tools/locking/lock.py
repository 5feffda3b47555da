"""``model.lock``: a JSON file with the digests of all that a build read and wrote, and with all that it was asked for. Its form is in
``docs/reproducible.md``.

A lock says nothing of the time, the machine's name, the threads or the user; two builds of the same inputs have the same lock. Paths stand in it as
they were given to the command, and ``directory`` leads from the lock to the folder in which that ran.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from trustformers_ir.ir.abi import TargetInfo
from trustformers_ir.ir.atomic import write_text
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.digests import file_digest
from trustformers_ir.ir.mapped import read_most
from trustformers_ir.ir.strict_json import no_key_twice
from trustformers_ir.runtime.identity import state_of
from trustformers_ir.tools.locking.inputs import input_files
from trustformers_ir.tools.locking.request import COMPILE, OPTIONS, Made, Request
from trustformers_ir.tools.locking.versions import information, versions

FORMAT, VERSION = "trustformers_ir lock", 1
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class File:
    """A file that was read or written. ``role``: what it is; of outputs nothing."""

    path: str
    bytes: int
    sha256: str
    role: str = ""

    @classmethod
    def of(cls, path: str, role: str = "", shown: str | None = None) -> File:
        """That of now. ``OSError``"""
        return cls(shown or path, os.stat(path).st_size, file_digest(path), role)


@dataclass(frozen=True)
class Lock:
    """What ``--lock`` writes."""

    directory: str
    request: Request
    inputs: tuple[File, ...]
    pipeline: tuple[str, ...]
    targets: tuple[TargetInfo, ...]
    versions: Mapping[str, str]
    outputs: tuple[File, ...]
    information: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def text(self) -> str:
        """The file, the same for equal builds."""
        data = asdict(self) | {"format": FORMAT, "version": VERSION}
        data["inputs"] = [asdict(f) for f in self.inputs]
        data["outputs"] = [{k: v for k, v in asdict(f).items() if k != "role"} for f in self.outputs]
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def write(self, path: str) -> None:
        """Whole or not at all."""
        write_text(path, self.text)


class Watch:
    """The inputs of a build as they were before it, so that a file which changes meanwhile is no input of a lock."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._before = {name: _state(name) for name in input_files(request)}

    def locked(self, made: Made, path: str) -> Lock:
        """The lock, to be written to ``path``, of a build that is done. ``UNREADABLE`` where an input changed meanwhile."""
        found = input_files(self.request)
        changed = [name for name, state in self._before.items() if _state(name) != state]
        if changed:
            raise CompilerError.of(Code.UNREADABLE, f"'{changed[0]}' changed while it was read", Where(file=changed[0]), "build again")
        directory = os.path.relpath(os.getcwd(), os.path.dirname(os.path.abspath(path)))
        return Lock(
            directory=Path(directory).as_posix(),
            request=self.request,
            inputs=tuple(File.of(name, role) for name, role in found.items()),
            pipeline=made.pipeline,
            targets=made.targets,
            versions=versions(self.request),
            outputs=tuple(File.of(name) for name in sorted(made.files)),
            information=information(),
        )


def _state(name: str) -> tuple[int, ...] | None:
    """None for a file that is not there: whoever reads it says so."""
    try:
        return state_of(os.stat(name))
    except OSError:
        return None


# --- reading -----------------------------------------------------------------------------------------------------------------------


def read_lock(path: str) -> Lock:
    """The lock in a file. ``LOCK_FILE`` for what is none, ``UNREADABLE``"""
    try:
        with open(path, "rb") as stream:
            raw = read_most(stream, MAX_BYTES)
    except OSError as error:
        raise CompilerError.of(Code.of_reading(error), f"cannot read '{path}': {error.strerror}", Where(file=path)) from None
    try:
        if len(raw) > MAX_BYTES:
            raise _Bad(f"it has more than {MAX_BYTES} bytes")
        return _lock(json.loads(raw.decode("utf-8"), object_pairs_hook=no_key_twice(_Bad)))
    except (_Bad, ValueError, RecursionError) as error:
        raise CompilerError.of(Code.LOCK_FILE, f"'{path}' is no lock: {error or 'it is nested too deeply'}", Where(file=path)) from None


class _Bad(Exception):
    """What is wrong with a lock."""


def _lock(data: Any) -> Lock:
    found = _object(data, {"format", "version", *(f.name for f in fields(Lock))}, "the lock")
    if found["format"] != FORMAT or found["version"] != VERSION:
        raise _Bad(f"its format is {found['format']!r} {found['version']!r}, not {FORMAT!r} {VERSION}")
    return Lock(
        directory=_text(found["directory"], "directory"),
        request=_request(found["request"]),
        inputs=tuple(_file(row, {"role"}) for row in _list(found["inputs"], "inputs")),
        pipeline=_texts(found["pipeline"], "pipeline"),
        targets=tuple(_target(row) for row in _list(found["targets"], "targets")),
        versions=_table(found["versions"], "versions"),
        outputs=tuple(_file(row, set()) for row in _list(found["outputs"], "outputs")),
        information=_table(found["information"], "information"),
    )


def _request(data: Any) -> Request:
    found = _object(data, {"command", "model", "outputs", "options"}, "request")
    command = _text(found["command"], "command")
    if command not in OPTIONS:
        raise _Bad(f"there is no command {command!r} that is locked")
    options = found["options"]
    if not isinstance(options, dict):
        raise _Bad("options is no object")
    for name, value in options.items():
        kind = OPTIONS[command].get(name)
        if kind is None or type(value) is not kind or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
            raise _Bad(f"the option {name[:60]!r} of {command} is {repr(value)[:60]}")
    outputs = _texts(found["outputs"], "outputs")
    if not outputs or (command == COMPILE and len(outputs) > 1):
        raise _Bad(f"{command} has {len(outputs)} outputs")
    return Request(command, _text(found["model"], "model"), outputs, options)


def _file(data: Any, more: set[str]) -> File:
    found = _object(data, {"path", "bytes", "sha256", *more}, "a file")
    size, digest = found["bytes"], _text(found["sha256"], "sha256")
    if type(size) is not int or size < 0 or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise _Bad("the bytes or the digest of a file are none")
    return File(_text(found["path"], "path"), size, digest, _text(found.get("role", ""), "role"))


def _target(data: Any) -> TargetInfo:
    found = _object(data, {f.name for f in fields(TargetInfo)}, "a target")
    texts = {name: _text(found[name], name) for name in ("name", "triple", "cpu")}
    return TargetInfo(**texts, features=_texts(found["features"], "features"))


def _object(data: Any, names: AbstractSet[str], what: str) -> dict[str, Any]:
    """An object of exactly these fields."""
    if not isinstance(data, dict):
        raise _Bad(f"{what} is no object")
    for name in sorted(names ^ data.keys()):
        raise _Bad(f"{what} has {'an unknown field' if name in data else 'no'} '{name[:60]}'")
    return data


def _list(data: Any, what: str) -> list[Any]:
    if not isinstance(data, list):
        raise _Bad(f"{what} is no list")
    return data


def _text(data: Any, what: str) -> str:
    if not isinstance(data, str) or "\0" in data:
        raise _Bad(f"{what} is no text")
    return data


def _texts(data: Any, what: str) -> tuple[str, ...]:
    return tuple(_text(row, what) for row in _list(data, what))


def _table(data: Any, what: str) -> dict[str, str]:
    if not isinstance(data, dict):
        raise _Bad(f"{what} is no object")
    return {name: _text(value, what) for name, value in data.items()}
