"""Filters as text, a subset of AIP-160 with IN: parses them, tells where they are wrong, writes them; knows no index.

    kind = "photo" AND (year >= 2010 OR tags:"red") AND NOT licence:* AND taken < timestamp("2024-01-01T00:00:00Z")

Grammar: https://google.aip.dev/160. There OR binds closer than AND, elsewhere AND does: where both stand side by side,
parentheses are required.
"""

from __future__ import annotations

import json
import math
import re
from datetime import datetime
from typing import NamedTuple

from data.attributes import is_unicode, parse_timestamp, timestamp_text
from data.errors import QueryError
from serving.filters import And, Compare, Contains, Exists, Filter, Ids, In, Not, Or, Scalar

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 32  # of NOT and parentheses
MAX_TERMS = 1_000
MAX_VALUES = 10_000  # in lists

ID = "id"  # the image's own id; an attribute of that name is written "id", in quotes

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
  | (?P<number>-?\d[\d.]*(?:[eE][+-]?\d+)?(?![\w]))
  | (?P<word>[^\W\d][\w.\-]*)
  | (?P<sign><=|>=|!=|[=<>:(),*\-])
  | (?P<end>\Z)
  | (?P<wrong>.)
    )""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS = {"AND", "OR", "NOT", "IN", "true", "false", "timestamp"}
_BARE = re.compile(r"[^\W\d][\w.\-]*")
_RELATIONS = ("=", "!=", "<", "<=", ">", ">=")
_VALUES = '"text" in quotes, a number, true, false or timestamp("2024-05-17T12:00:00Z")'


class FilterError(QueryError):
    """A filter's text cannot be used; `position` counts characters from 1."""

    def __init__(self, position: int, expected: str, received: str, next_step: str) -> None:
        super().__init__("filter", expected, f"{received} at character {position} of the filter", next_step)
        self.position = position


def parse(text: str) -> Filter:
    """The filter that `text` describes; a blank one matches every image. `FilterError` tells what is wrong, and where.

    Example: `parse('year >= 2010 AND tags:"red"')`.
    """
    if len(text) > MAX_CHARACTERS:
        raise FilterError(
            MAX_CHARACTERS + 1, f"a filter of at most {MAX_CHARACTERS:,} characters", f"{len(text):,}", "shorten it"
        )
    return And(()) if not text.strip() else _Parser(text).whole()


class _Token(NamedTuple):
    kind: str  # text, number, word, keyword, sign, end or wrong
    text: str  # as it is written
    start: int


class _Parser:
    """Recursive descent, a method for each rule."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0
        self.depth = self.terms = self.values = 0
        self._advance()

    def whole(self) -> Filter:
        parsed = self.expression()
        if self.token.kind != "end":
            raise self.refused("AND, OR or the end")
        return parsed

    def expression(self) -> Filter:
        """term (AND term)* or term (OR term)*"""
        terms = [self.term()]
        word = self.token.text if self.at("AND", "OR") else ""
        while word and self.skip(word):
            terms.append(self.term())
        if word and self.at("AND", "OR"):
            raise self.refused(f"{word} or the end", "put parentheses around what belongs together")
        if len(terms) == 1:
            return terms[0]
        return And(tuple(terms)) if word == "AND" else Or(tuple(terms))

    def term(self) -> Filter:
        """(NOT | -) term, ( expression ), or a comparison"""
        start = self.token
        if not (self.skip("NOT") or self.skip("-") or self.skip("(")):
            return self.comparison()
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.refused(f"at most {MAX_DEPTH} levels of NOT and parentheses", "write it flatter", start)
        parsed = self.expression() if start.text == "(" else Not(self.term())
        if start.text == "(":
            self.expect(")")
        self.depth -= 1
        return parsed

    def comparison(self) -> Filter:
        """NAME relation value, NAME IN (value, …), NAME:"text" or NAME:*"""
        name = self.token
        self.terms += 1
        if self.terms > MAX_TERMS:
            raise self.refused(f"at most {MAX_TERMS:,} comparisons", 'list values as in kind IN ("a", "b")')
        if name.kind not in ("word", "text"):
            raise self.refused("the name of an attribute, id, NOT or (")
        attribute = name.text if name.kind == "word" else self.text_of(name)
        self._advance()
        if name.kind == "word" and name.text == ID:
            return self.ids()
        if self.skip("IN"):
            return In(attribute, self.listed())
        if self.skip(":"):
            if self.skip("*"):
                return Exists(attribute)
            return Contains(attribute, self.text_value('"text" in quotes, or * for any value'))
        relation = self.relation(*_RELATIONS)
        if relation == "!=":
            return Not(Compare(attribute, "=", self.value()))
        return Compare(attribute, relation, self.value())  # type: ignore[arg-type]

    def ids(self) -> Filter:
        """What follows the word id."""
        if self.skip("IN"):
            return Ids(frozenset(self.listed(texts=True)))  # type: ignore[arg-type]
        relation = self.relation("=", "!=")
        found = Ids(frozenset({self.text_value("an image's id in quotes")}))
        return found if relation == "=" else Not(found)

    def relation(self, *known: str) -> str:
        token = self.token
        if not self.at(*known):
            raise self.refused(f"{' '.join(known)} or IN" if "<" not in known else f"{' '.join(known)} : or IN")
        self._advance()
        return token.text

    def listed(self, texts: bool = False) -> tuple[Scalar, ...]:
        """( value, … ), which may be empty"""
        self.expect("(")
        values: list[Scalar] = []
        while not self.skip(")"):
            if values:
                self.expect(",", ") or ,")
            self.values += 1
            if self.values > MAX_VALUES:
                raise self.refused(f"at most {MAX_VALUES:,} values in lists", "ask in parts")
            values.append(self.text_value("an image's id in quotes") if texts else self.value())
        return tuple(values)

    def value(self) -> Scalar:
        token = self.token
        if self.skip("timestamp"):
            self.expect("(")
            return self.moment()
        if self.skip("true") or self.skip("false"):
            return token.text == "true"
        if token.kind == "text":
            return self.text_value(_VALUES)
        if token.kind == "number":
            return self.number()
        advice = f'write "{token.text}"' if token.kind == "word" else ""
        raise self.refused(_VALUES, advice)

    def number(self) -> int | float:
        token = self.token
        try:
            number = float(token.text) if re.search("[.eE]", token.text) else int(token.text)
        except ValueError:
            raise self.refused("a number such as -3, 0.5 or 1e9") from None
        if isinstance(number, float) and not math.isfinite(number):
            raise self.refused("a number that a double holds")
        self._advance()
        return number

    def moment(self) -> datetime:
        token = self.token
        text = self.text_value("a time in quotes")
        try:
            moment = parse_timestamp(text)
        except ValueError:
            raise self.refused('a time with its offset, such as "2024-05-17T12:00:00Z"', token=token) from None
        self.expect(")")
        return moment

    def text_value(self, expected: str) -> str:
        token = self.token
        if token.kind != "text":
            raise self.refused(expected, f'write "{token.text}"' if token.kind == "word" else "")
        text = self.text_of(token)
        self._advance()
        return text

    def text_of(self, token: _Token) -> str:
        """What a quoted text says; the escapes are JSON's, and \\'."""
        quoted = token.text
        if quoted[0] == "'":
            quoted = '"' + re.sub(r"\\'|\"", lambda m: "'" if m[0] == "\\'" else '\\"', quoted[1:-1]) + '"'
        try:
            text = json.loads(quoted, strict=False)
        except ValueError:
            text = "\ud800"
        if not is_unicode(text):
            raise self.refused("a text with the escapes of JSON", "write \\\\ for a backslash", token)
        return text

    def at(self, *texts: str) -> bool:
        return self.token.kind in ("sign", "keyword") and self.token.text in texts

    def skip(self, text: str) -> bool:
        """Whether `text` came next; then it is behind us."""
        found = self.at(text)
        if found:
            self._advance()
        return found

    def expect(self, sign: str, expected: str = "") -> None:
        if not self.skip(sign):
            raise self.refused(expected or sign)

    def refused(self, expected: str, next_step: str = "", token: _Token | None = None) -> FilterError:
        token = token or self.token
        shown = token.text if len(token.text) <= 40 else f"{token.text[:39]}…"
        if token.text in ("'", '"'):
            next_step = "close the quotes"
        elif token.kind == "word" and token.text.upper() in ("AND", "OR", "NOT", "IN"):
            next_step = f"write {token.text.upper()}"
        received = "the end" if token.kind == "end" else shown
        return FilterError(token.start + 1, expected, received, next_step or "correct the filter")

    def _advance(self) -> None:
        match = _TOKEN.match(self.text, self.position)
        assert match is not None  # the last alternative matches any character
        kind = match.lastgroup or ""
        text = match[kind]
        self.position = match.end()
        self.token = _Token("keyword" if kind == "word" and text in _KEYWORDS else kind, text, match.start(kind))


def unparse(where: Filter) -> str:
    """A text that `parse` reads with the same meaning; an equal one unless an AND or OR has fewer than two."""
    match where:
        case And(terms) | Or(terms) if len(terms) == 1:
            return unparse(terms[0])
        case And(()):
            return f"NOT {ID} IN ()"
        case Or(()):
            return f"{ID} IN ()"
        case And(terms):
            return " AND ".join(_grouped(term) for term in terms)
        case Or(terms):
            return " OR ".join(_grouped(term) for term in terms)
        case Not(term):
            return f"NOT {_grouped(term)}"
        case Ids(image_ids) if len(image_ids) == 1:
            return f"{ID} = {_written(*image_ids)}"
        case Ids(image_ids):
            return f"{ID} IN ({', '.join(map(_written, sorted(image_ids)))})"
        case Exists(attribute):
            return f"{_name(attribute)}:*"
        case Contains(attribute, text):
            return f"{_name(attribute)}:{_written(text)}"
        case In(attribute, values):
            return f"{_name(attribute)} IN ({', '.join(map(_written, values))})"
        case Compare(attribute, relation, value):
            return f"{_name(attribute)} {relation} {_written(value)}"


def _grouped(term: Filter) -> str:
    """A term that stands beside others."""
    while isinstance(term, And | Or) and len(term.terms) == 1:
        term = term.terms[0]
    return f"({unparse(term)})" if isinstance(term, And | Or) and term.terms else unparse(term)


def _name(attribute: str) -> str:
    bare = _BARE.fullmatch(attribute) and attribute not in _KEYWORDS and attribute != ID
    return attribute if bare else _written(attribute)


def _written(value: Scalar) -> str:
    if isinstance(value, datetime):
        return f'timestamp("{timestamp_text(value)}")'
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
