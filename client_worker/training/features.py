"""What this worker can do beyond training A and B from what it was given.

A run whose plans need more refuses its registration, and `fedlora methods` says beforehand which
methods those are.
"""

from __future__ import annotations

from fedlora.runs.plan import WorkerFeature

__all__ = ["FEATURES"]

FEATURES = frozenset(
    {
        WorkerFeature.PARTIAL_TRAINING,
        WorkerFeature.PRIVATE_PARTS,
        WorkerFeature.BASE_CHANGES,
        WorkerFeature.COMPONENT_SELECTION,
        WorkerFeature.RANK_PRUNING,
        WorkerFeature.CORE_MATRIX,
        WorkerFeature.PERSONAL_STAGE,
        WorkerFeature.ROUND_METRICS,
    }
)
