"""placeholder of the lead; M4 writes this file."""

from __future__ import annotations

from typing import Any

from aggregator_service.aggregation.weighting.base import CohortGeometry


def cohort_geometry(modules: Any) -> CohortGeometry:
    raise NotImplementedError
