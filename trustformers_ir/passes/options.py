"""Options as text: the fields of a frozen dataclass (a pass, a quantization recipe) read from ``k=1,flag=true`` and printed that way.

A field takes a bool, a number, a text, a member of an enum, a dtype, several texts joined by ``+`` (``none`` for no text), or ``none`` where it
is optional. Fields declared with ``metadata=IN_PYTHON`` hold what is no text; they are given in Python alone.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from trustformers_ir.ir.diagnostics import Code, Collector
from trustformers_ir.ir.dtypes import DType

IN_PYTHON: Mapping[str, bool] = {"in_python": True}
JOINT = "+"  # between several texts


def option_fields(kind: Any) -> list[dataclasses.Field[Any]]:
    """The fields that can be given as text."""
    return [f for f in dataclasses.fields(kind) if "in_python" not in f.metadata]


def options_text(value: Any) -> str:
    """``{k=1,flag=true}``: the options that differ from their defaults; empty when none does."""
    found = [(f, getattr(value, f.name)) for f in option_fields(value)]
    texts = [f"{f.name}={option_text(v)}" for f, v in found if v != f.default]
    return f"{{{','.join(texts)}}}" if texts else ""


def parse_options(kind: type, what: str, text: str, problems: Collector, code: Code = Code.PASS_OPTION) -> dict[str, Any]:
    """The values of ``k=1,flag=true`` for the fields of ``kind``; problems, which call it ``what``, go to the collector under ``code``."""
    hints = typing.get_type_hints(kind)
    fields = {f.name: hints[f.name] for f in option_fields(kind)}
    options: dict[str, Any] = {}
    for item in text.split(",") if text.strip() else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in fields:
            known = f"its options are {', '.join(fields)}" if fields else "it has no options"
            problems.add(code, f"the {what} has no option '{key}'", help=nearest(key, fields, known))
        elif key in options:
            problems.add(code, f"the option '{key}' of the {what} is given twice")
        elif not equals:
            problems.add(code, f"the option '{key}' of the {what} has no value", help=f"write {key}=<value>")
        else:
            try:
                options[key] = _option_value(fields[key], value)
            except ValueError:
                problems.add(code, f"the option '{key}' of the {what} takes {_takes(fields[key])}, not '{value}'")
    return options


def not_patterns(name: str, value: object) -> list[str]:
    """What is wrong with a value that should be patterns of names; nothing when nothing is."""
    return [] if isinstance(value, tuple) and all(isinstance(p, str) for p in value) else [f"{name} is {value!r}, not a tuple of patterns of names"]


def not_positive(name: str, value: object) -> list[str]:
    """What is wrong with a value that should be a number above 0; nothing when nothing is."""
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    return [] if right else [f"{name} is {value!r}, not a number above 0"]


def nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    """Advice about a name that is not known."""
    near = get_close_matches(name, list(known), 1)
    return f"did you mean '{near[0]}'?" if near else otherwise


def _choices(hint: Any) -> Sequence[Any]:
    """The alternatives of ``X | None``; a plain hint is its only one."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)


def _option_value(hint: Any, text: str) -> Any:
    """``ValueError`` when ``text`` is no value of the type."""
    for choice in sorted(_choices(hint), key=lambda c: c is not type(None)):
        if choice is type(None):
            if text == "none":
                return None
        elif choice is bool:
            if text in ("true", "false"):
                return text == "true"
        elif typing.get_origin(choice) is tuple:
            return () if text == "none" else tuple(filter(None, text.split(JOINT)))
        elif issubclass(choice, DType):
            if text in choice.__members__:
                return choice.__members__[text]
        else:
            return choice(text)  # int, float, str, an enum by value
    raise ValueError(text)


def option_text(value: Any) -> str:
    """The value of an option as ``parse_options`` reads it."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return JOINT.join(map(str, value))
    return str(value.value) if isinstance(value, enum.Enum) and not isinstance(value, DType) else str(value)


def _takes(hint: Any) -> str:
    names: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "none", DType: "a dtype"}
    return " or ".join(names.get(c) or " or ".join(f"'{m.value}'" for m in c) for c in _choices(hint))
