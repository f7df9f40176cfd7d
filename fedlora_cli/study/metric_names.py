"""The names of a study's metrics, as far as they are known before a cell has run.

What is told of every round is known; a method, a weighting or a plug-in may measure by names of its
own. So a name that nobody knows is refused where it is a score's, or nearly that of a figure that
is known, and any other is left to be measured.
"""

from __future__ import annotations

import difflib
import re

from fedlora.runs.score_names import COSTS, SHARES

__all__ = ["CERTIFIED", "MEAN", "misspelt"]

MEAN = "mean_"
"""before a name: the mean over all rounds"""

CERTIFIED = (
    "relative_error",
    "relative_error_vs_change",
    "factor_mean_error_vs_change",
    "lower_bound_vs_change",
    "gap_closed",
)

_PUBLISHED = ("test", "held_out", "personal")
_JUDGED = ("accuracy", "token_accuracy")

_KNOWN = frozenset({
    *(f"{group}_{name}" for group in (*_PUBLISHED, "local") for name in (*SHARES, *COSTS)),
    *(f"{group}_num_examples" for group in (*_PUBLISHED, "local")),
    *(f"held_out_{m}_{s}" for m in _JUDGED for s in ("worst_tenth", "lowest", "deviation")),
    *("test_forgetting", "held_out_forgetting", "local_global_gap"),
    *CERTIFIED,
    *("bytes_up", "bytes_down"),
})  # fmt: skip

_EXPERIENCE = re.compile(r"_experience_\d+(?=_)")

_ALIKE = 0.85
"""of difflib's ratio: the names that methods measure are less alike to those that are known"""


def misspelt(metric: str) -> str:
    """The known name that is meant by one that no cell can have; empty if one may have it."""
    name = _EXPERIENCE.sub("", metric.removeprefix(MEAN))
    if name in _KNOWN:
        return ""
    is_score = name.startswith(tuple(f"{group}_" for group in _PUBLISHED))
    near = difflib.get_close_matches(name, sorted(_KNOWN), n=1, cutoff=0.0 if is_score else _ALIKE)
    return near[0] if near else ""
