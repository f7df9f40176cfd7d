"""The arithmetic of the formulas in docs/algorithms.md."""

from __future__ import annotations

import itertools
import re


def evaluate(formula: str, **sizes: int) -> int:
    """What a formula comes to: a product has no sign in it, and ^ is a power."""
    tokens = re.findall(r"min|[A-Za-z]|\d+|\S", formula)
    written = [tokens[0]]
    for left, right in itertools.pairwise(tokens):
        ends = left == ")" or (left.isalnum() and left != "min")
        begins = right == "(" or right.isalnum()
        written += ["*", right] if ends and begins else [right]
    text = "".join("**" if token == "^" else token for token in written)
    return int(eval(text, {"__builtins__": {}, "min": min}, sizes))
