"""Files of a checkpoint folder, opened with care: paths stay inside, sizes are bounded, JSON errors have a line and a column."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.mapped import read_most
from trustformers_ir.ir.strict_json import no_key_twice

MAX_JSON = 4 << 20


class Folder:
    """A folder given by the user. Names that come from files inside of it are resolved with :meth:`file` only."""

    def __init__(self, path: str | Path, code: Code = Code.CHECKPOINT_NOT_FOUND) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            problem = "is a file, not a folder" if self.path.exists() else "does not exist"
            help = "give the folder that holds config.json and *.safetensors"
            raise CompilerError.of(code, f"the checkpoint '{path}' {problem}", Where(file=str(path)), help)
        self.root = _allowed_root(self.path)

    def shown(self, name: str) -> str:
        """How messages name a file of the folder."""
        return str(self.path / name)

    def has(self, name: str) -> bool:
        return os.path.lexists(self.path / name)

    def names(self, suffix: str) -> list[str]:
        """The files at the top of the folder whose names end so, sorted."""
        return sorted(p.name for p in self.path.iterdir() if p.name.endswith(suffix))

    def file(self, name: str, code: Code) -> Path:
        """The file of that relative name; an error when it leads out of the folder."""
        pure = Path(name)
        parts_ok = bool(name) and "\0" not in name and "\\" not in name and not pure.is_absolute() and ".." not in pure.parts
        if not parts_ok:
            raise CompilerError.of(code, f"'{name}' is not a file name inside of the folder", Where(file=str(self.path)), _ESCAPE_HELP)
        path = self.path / pure
        try:
            target = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:  # ValueError: half of a surrogate pair
            raise CompilerError.of(code, f"'{name}' cannot be resolved: {error}", Where(file=str(path))) from None
        if not target.is_relative_to(self.root):
            raise CompilerError.of(code, f"'{name}' is a link to a place outside of the folder", Where(file=str(path)), _ESCAPE_HELP)
        return path

    def json(self, name: str, code: Code, limit: int = MAX_JSON) -> tuple[Any, str]:
        """The parsed file and its text."""
        return read_json(self.file(name, code), code, limit)


_ESCAPE_HELP = "files of a checkpoint lie in its folder"


def _allowed_root(path: Path) -> Path:
    """The folder itself; of a snapshot in a Hugging Face cache the model's cache folder, for its files are links to ``../../blobs``."""
    real = path.resolve()
    repository = real.parent.parent
    if real.parent.name == "snapshots" and repository.name.startswith("models--") and (repository / "blobs").is_dir():
        return repository
    return real


def read_json(path: Path, code: Code, limit: int = MAX_JSON) -> tuple[Any, str]:
    """A JSON file without repeated keys, and its text. Errors carry line and column."""
    place = str(path)
    if path.exists() and not path.is_file():  # reading a pipe would wait
        raise CompilerError.of(Code.UNREADABLE, f"'{path.name}' is not an ordinary file", Where(file=place))
    try:
        with path.open("rb") as stream:
            raw = read_most(stream, limit)
    except OSError as error:
        raise CompilerError.of(Code.UNREADABLE, f"cannot read '{path.name}': {error.strerror}", Where(file=place)) from None
    if len(raw) > limit:
        raise CompilerError.of(code, f"'{path.name}' has more than the {limit} bytes that are allowed", Where(file=place))
    try:
        text = raw.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=no_key_twice(_Repeated), parse_constant=float), text
    except UnicodeDecodeError as error:
        raise CompilerError.of(code, f"'{path.name}' is not UTF-8 text", Where(file=place, offset=error.start)) from None
    except json.JSONDecodeError as error:
        where = Where(file=place, line=error.lineno, column=error.colno)
        source = error.doc.splitlines()[error.lineno - 1] if error.lineno <= len(error.doc.splitlines()) else ""
        raise CompilerError.of(code, f"'{path.name}' is not JSON: {error.msg}", where, "correct it, or fetch it again", source) from None
    except _Repeated as error:
        where, source = place_of_key(place, text, error.key, last=True)
        raise CompilerError.of(code, f"the key '{error.key}' occurs twice in one object", where, "keep one of them", source) from None
    except (RecursionError, ValueError) as error:
        problem = "is nested too deeply" if isinstance(error, RecursionError) else f"holds a number that is out of range: {error}"
        raise CompilerError.of(code, f"'{path.name}' {problem}", Where(file=place)) from None


class _Repeated(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def place_of_key(file: str, text: str, key: str, last: bool = False) -> tuple[Where, str]:
    """Where a key stands in the text of a JSON file, and that line."""
    found = list(re.finditer(re.escape(json.dumps(key)) + r"\s*:", text))
    if not found:
        return Where(file=file), ""
    start = found[-1 if last else 0].start()
    line = text.count("\n", 0, start) + 1
    begin = text.rfind("\n", 0, start) + 1
    return Where(file=file, line=line, column=start - begin + 1), text[begin:].split("\n", 1)[0]
