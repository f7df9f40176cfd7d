"""The names of scores, and whether more of one is better or worse."""

from __future__ import annotations

__all__ = ["COSTS", "SHARES"]

SHARES = ("accuracy", "macro_f1", "balanced_accuracy", "token_accuracy", "exact_match")
"""shares, in [0, 1]: more is better"""

COSTS = ("loss", "perplexity")
"""from 0 upwards: less is better"""
