"""PromQL as far as our dashboard and alerts speak it; what is not understood is an error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Node", "names_in", "parse", "seconds_of"]

_TOKENS = re.compile(
    r"""\s*(?:(?P<duration>\d+(?:ms|[smhdw]))|(?P<number>\d+\.?\d*(?:e[+-]?\d+)?)"""
    r"""|(?P<name>[a-zA-Z_:][\w:]*)|(?P<text>"(?:[^"\\]|\\.)*")"""
    r"""|(?P<sign>=~|!~|!=|==|>=|<=|[-+*/()\[\]{},=<>]))"""
)
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LEVELS: Sequence[frozenset[str]] = (
    frozenset({"or"}),
    frozenset({"and", "unless"}),
    frozenset({"==", "!=", ">", "<", ">=", "<="}),
    frozenset({"+", "-"}),
    frozenset({"*", "/"}),
)
_AGGREGATIONS = frozenset({"sum", "max", "min", "avg", "count"})
_FUNCTIONS = frozenset(
    {"absent", "time", "increase", "rate", "avg_over_time", "changes", "histogram_quantile"}
)


@dataclass(frozen=True)
class Node:
    """One operation and what it works on."""

    kind: str
    """number, select, call, aggregate or binary"""
    name: str = ""
    inner: tuple[Node, ...] = ()
    number: float = 0.0
    matchers: tuple[tuple[str, str, str], ...] = ()
    seconds: float | None = None
    """of a range"""
    by: tuple[str, ...] | None = None
    """labels of `by` or `on`"""
    many_to_one: bool = False
    taken_over: tuple[str, ...] = ()
    """labels of `group_left`"""


def seconds_of(duration: str) -> float:
    """Seconds in "10m"."""
    match = re.fullmatch(r"(\d+)(ms|[smhdw])", duration)
    if match is None:
        raise ValueError(f"{duration!r} is no duration")
    return int(match[1]) * _UNITS[match[2]]


# --- parsing -------------------------------------------------------------------------------


def parse(text: str) -> Node:
    """The expression; ValueError if it is none, or more than is understood here."""
    parser = _Parser(text)
    node = parser.binary(0)
    parser.expect("")
    return node


def names_in(node: Node) -> set[str]:
    """The metrics that an expression asks for."""
    own = {node.name} if node.kind == "select" else set()
    return own.union(*(names_in(inner) for inner in node.inner))


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens, position = [], 0
        while text[position:].strip():
            match = _TOKENS.match(text, position)
            if match is None:
                raise ValueError(f"{text!r}: cannot read {text[position : position + 20]!r}")
            self._tokens.append(match[0].strip())
            position = match.end()
        self._text, self._at = text, 0

    @property
    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token, self._at = self._next, self._at + 1
        return token

    def expect(self, token: str) -> None:
        if self._take() != token:
            raise ValueError(f"{self._text!r}: expected {token or 'the end'!r} at token {self._at}")

    def binary(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self._unit()
        left = self.binary(level + 1)
        while self._next in _LEVELS[level]:
            sign, by, many, taken = self._take(), None, False, ()
            if self._next == "on":
                self._take()
                by = self._names()
            if self._next == "group_left":
                self._take()
                many, taken = True, self._names()
            right = self.binary(level + 1)
            left = Node("binary", sign, (left, right), by=by, many_to_one=many, taken_over=taken)
        return left

    def _unit(self) -> Node:
        token = self._take()
        if token == "(":
            node = self.binary(0)
            self.expect(")")
            return node
        if re.fullmatch(r"[\d.e+-]+", token) and token not in "+-":
            return Node("number", number=float(token))
        if not re.fullmatch(r"[a-zA-Z_:][\w:]*", token):
            raise ValueError(f"{self._text!r}: {token!r} begins nothing")
        if token in _AGGREGATIONS:
            return self._aggregate(token)
        if self._next == "(":
            return Node("call", _known(token), self._arguments())
        return self._selector(token)

    def _aggregate(self, name: str) -> Node:
        by: tuple[str, ...] = ()
        if self._next == "by":
            self._take()
            by = self._names()
        (inner,) = self._arguments()
        return Node("aggregate", name, (inner,), by=by)

    def _arguments(self) -> tuple[Node, ...]:
        self.expect("(")
        found: list[Node] = []
        while self._next != ")":
            found.append(self.binary(0))
            if self._next == ",":
                self._take()
        self.expect(")")
        return tuple(found)

    def _names(self) -> tuple[str, ...]:
        self.expect("(")
        found = []
        while self._next != ")":
            found.append(self._take())
            if self._next == ",":
                self._take()
        self.expect(")")
        return tuple(found)

    def _selector(self, name: str) -> Node:
        matchers: list[tuple[str, str, str]] = []
        if self._next == "{":
            self._take()
            while self._next != "}":
                label, sign, text = self._take(), self._take(), self._take()
                if sign not in ("=", "!=", "=~", "!~") or not text.startswith('"'):
                    raise ValueError(f"{self._text!r}: {label}{sign}{text} is no matcher")
                matchers.append((label, sign, text[1:-1]))
                if self._next == ",":
                    self._take()
            self.expect("}")
        seconds = None
        if self._next == "[":
            self._take()
            seconds = seconds_of(self._take())
            self.expect("]")
        return Node("select", name, matchers=tuple(matchers), seconds=seconds)


def _known(function: str) -> str:
    if function not in _FUNCTIONS:
        raise ValueError(f"{function}() is not known here")
    return function
