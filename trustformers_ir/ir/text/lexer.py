"""Tokens of the text form, made one at a time from a position in the text, so that memory does not grow with the number of tokens.

A line is a statement: line breaks are tokens. ``//`` starts a comment, except inside a dim, where it is floor division (``dimtext`` scans
the text itself and moves the lexer on).
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple, NoReturn

from trustformers_ir.ir.diagnostics import Code

MAX_TEXT = 256 << 20  # characters of a module
MAX_INTEGER = (1 << 64) - 1  # magnitude of any integer in the text
MAX_NUMBER = 64  # characters of a number
MAX_NAME = 1024  # characters of a name, quoted or not
SHOWN = 40  # how much of a token a message repeats

_TOKEN = re.compile(
    r"""(?P<skip>(?:[ \t\r]+|//[^\n]*)+)
    |(?P<newline>\n)
    |(?P<value>%(?:[A-Za-z_][A-Za-z0-9_.$]*|[0-9]+))
    |(?P<global>@(?:[A-Za-z_][A-Za-z0-9_.$]*|(?=")))
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<number>-(?:inf|nan)\b|-?(?:0x[0-9A-Fa-f]+|[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?))
    |(?P<string>")
    |(?P<punct>->|[()\[\]{},:=^%*+/-])""",
    re.VERBOSE,
)
_JSON = json.JSONDecoder()
_REST_OF_LINE = re.compile(r"[^\n]*")
_WORD = re.compile(r"[^\s,(){}\[\]]+")


class TextProblem(Exception):
    """One problem at one place; the parser collects them."""

    def __init__(self, code: Code, message: str, line: int, column: int, help: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.line = line
        self.column = column
        self.help = help


class Token(NamedTuple):
    """A token: ``text`` is what it says (of a string: the decoded value; of ``%x`` and ``@x``: the name alone)."""

    kind: str
    text: str
    start: int
    end: int
    line: int
    column: int

    def __str__(self) -> str:
        match self.kind:
            case "newline":
                return "the end of the line"
            case "eof":
                return "the end of the text"
            case "string":
                return "a string"
            case "value":
                return f"'%{shorten(self.text)}'"
            case "global":
                return f"'@{shorten(self.text)}'"
        return f"'{shorten(self.text)}'"


class Lexer:
    """A cursor over the text with one token of lookahead (two with ``peek2``)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._line = 1
        self._line_start = 0
        self._position = 0
        self._ahead: Token | None = None

    # --- the cursor ---

    def peek(self) -> Token:
        """The next token. A character that starts no token is a problem."""
        if self._ahead is None:
            self._ahead = self._scan(self._position)
        return self._ahead

    def peek2(self) -> Token:
        """The token after the next one, which must not be a line break."""
        first = self.peek()
        return self._scan(first.end)

    def take(self) -> Token:
        token = self.peek()
        self._ahead = None
        self._position = token.end
        if token.kind == "newline":
            self._line += 1
            self._line_start = token.end
        return token

    def jump(self, position: int) -> None:
        """Go on at a later position of the same line."""
        self._ahead = None
        self._position = position

    def at(self, text: str) -> bool:
        """Whether the next token is that name or punctuation."""
        token = self.peek()
        return token.text == text and token.kind in ("punct", "name")

    def accept(self, text: str) -> bool:
        """Take the next token if it is that name or punctuation."""
        if self.at(text):
            self.take()
            return True
        return False

    def expect(self, text: str, where: str = "") -> Token:
        if not self.at(text):
            self.fail(f"expected '{text}'{where}, found {self.peek()}")
        return self.take()

    def expect_kind(self, kind: str, what: str) -> Token:
        token = self.peek()
        if token.kind != kind:
            self.fail(f"expected {what}, found {token}")
        if len(token.text) > 2 * MAX_NAME:
            self.fail(f"a name of {len(token.text)} characters; {2 * MAX_NAME} are the most", code=Code.TEXT_LIMIT)
        return self.take()

    def end_line(self) -> None:
        if self.peek().kind not in ("newline", "eof"):
            self.fail(f"expected the end of the line, found {self.peek()}", help="one operation or declaration per line")
        self.skip_newlines()

    def skip_newlines(self) -> None:
        while self.peek().kind == "newline":
            self.take()

    def word(self, what: str) -> Token:
        """The run of characters up to a blank or bracket, whatever tokens it is made of."""
        start = self.peek()
        match = _WORD.match(self.text, start.start)
        if match is None:
            self.fail(f"expected {what}, found {start}")
        self.jump(match.end())
        return Token("word", match.group(), start.start, match.end(), start.line, start.column)

    def integer(self, what: str = "an integer", low: int = -(1 << 63), high: int = (1 << 63) - 1) -> int:
        token = self.peek()
        if token.kind != "number" or not token.text.lstrip("-").isdigit():
            self.fail(f"expected {what}, found {token}")
        if len(token.text) > MAX_NUMBER or not low <= (value := int(token.text)) <= high:
            self.fail(f"{what} lies between {low} and {high}, found {token}", code=Code.TEXT_LIMIT)
        self.take()
        return value

    def string(self, what: str = "a string", limit: int | None = MAX_NAME * 4) -> str:
        token = self.peek()
        if token.kind != "string":
            self.fail(f"expected {what}, found {token}")
        if limit is not None and len(token.text) > limit:
            self.fail(f"{what} of {len(token.text)} characters; {limit} are the most", code=Code.TEXT_LIMIT)
        self.take()
        return token.text

    # --- problems ---

    def fail(self, message: str, token: Token | None = None, code: Code = Code.SYNTAX, help: str = "") -> NoReturn:
        """A problem at ``token`` (by default at the next one)."""
        place = token or self.peek()
        raise TextProblem(code, message, place.line, place.column, help)

    def recover(self) -> str:
        """Move to the start of the next line; the rest of the one that is left, from its beginning, is returned."""
        self._ahead = None
        match = _REST_OF_LINE.match(self.text, self._position)
        assert match is not None
        start, self._position = self._line_start, match.end()
        line = self.text[start : self._position]
        if self._position < len(self.text):
            self._position += 1
            self._line += 1
            self._line_start = self._position
        return line

    @property
    def position(self) -> int:
        """Where the next token is looked for."""
        return self._position

    @property
    def finished(self) -> bool:
        return self._position >= len(self.text)

    # --- scanning ---

    def _scan(self, position: int) -> Token:
        text = self.text
        while True:
            match = _TOKEN.match(text, position)
            if match is None:
                break
            kind = match.lastgroup
            if kind != "skip":
                assert kind is not None
                column = match.start() - self._line_start + 1
                if kind == "string" or (kind == "global" and match.end() == match.start() + 1):
                    return self._string(kind, match.start(), match.end() - (kind == "string"), column)
                shown = match.group()[1:] if kind in ("value", "global") else match.group()
                return Token(kind, shown, match.start(), match.end(), self._line, column)
            position = match.end()
        column = position - self._line_start + 1
        if position >= len(text):
            return Token("eof", "", position, position, self._line, column)
        character = text[position]
        shown = character if character.isprintable() else f"U+{ord(character):04X}"
        raise TextProblem(Code.SYNTAX, f"the character '{shown}' may not stand here", self._line, column)

    def _string(self, kind: str, start: int, quote: int, column: int) -> Token:
        try:
            value, end = _JSON.raw_decode(self.text, quote)
        except ValueError as error:
            reason = str(error).split(":")[0].lower()
            raise TextProblem(Code.SYNTAX, f"a broken string: {reason}", self._line, column, "strings are written as in JSON, on one line") from None
        return Token(kind, value, start, end, self._line, column)


def shorten(text: str, limit: int = SHOWN) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
