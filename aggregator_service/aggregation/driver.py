"""A method over a cohort's files: from updates to one published adapter.

One module of the cohort is in memory at a time. Workers of weight 0 are dropped before anything
is opened, and the others sorted by name, so that neither arrival order nor an absent worker
changes a bit. Modules trained in full (`modules_to_save`) are a group of their own: their mean
is linear and exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from aggregator_service.aggregation.adapter_writer import AdapterWriter
from aggregator_service.aggregation.base import Aggregator, Publication
from aggregator_service.aggregation.certificate import certify
from aggregator_service.aggregation.cohort_files import CohortFiles, Contribution
from fedlora.adapters.names import Factor, lora_key
from fedlora.errors import FedLoraError
from fedlora.numerics import weighted_sum
from fedlora.runs.seeds import derive_seed
from fedlora.tensors.manifest import DataType

__all__ = ["AggregationOutcome", "Contribution", "aggregate", "certify"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationOutcome:
    """What was written."""

    rank: int
    """of every module"""
    num_bytes: int
    """size of the file"""
    measurements: Mapping[str, Mapping[str, float]]
    """what the method measured, by module path"""


def aggregate(
    contributions: Sequence[Contribution],
    method: Aggregator,
    *,
    output: Path,
    rank: int | None = None,
    output_scaling: float | Callable[[int], float] = 1.0,
    dtype: DataType = DataType.F32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AggregationOutcome:
    """Combines updates into one adapter file.

    Args:
        contributions: the updates; those of weight 0 are as good as absent.
        method: from `registry.create`.
        output: safetensors file with PEFT keys to write; equal inputs give equal bytes. Partly
            written if an error is raised.
        rank: of the result; None takes the largest sent.
        output_scaling: s with which readers will serve it, or s of the rank: lora_B is divided
            by it, once.
        dtype: element type of the file.
        device: where the arithmetic runs, in float64.
        seed: of random starts and spare components; each module has a generator of its own.
        metadata: strings for the file's header; None gives PEFT's `format: pt`.
        progress: called with (modules done, modules in all).

    Raises:
        FedLoraError: what `CohortFiles`, the method and `AdapterWriter` raise; an error of the
            method names the module.
    """
    with CohortFiles(contributions) as cohort:
        result_rank = cohort.largest_rank if rank is None else rank
        scaling = output_scaling(result_rank) if callable(output_scaling) else output_scaling
        publication = Publication(dtype=dtype.torch_dtype, scaling=scaling)
        shapes = dict(cohort.saved)
        for module in cohort.modules:
            out_features, in_features = cohort.features(module)
            shapes[lora_key(module, Factor.LORA_A)] = (result_rank, in_features)
            shapes[lora_key(module, Factor.LORA_B)] = (out_features, result_rank)
        measurements: dict[str, Mapping[str, float]] = {}
        header = {"format": "pt"} if metadata is None else metadata
        with AdapterWriter(output, shapes, dtype, header) as writer:
            for done, module in enumerate(cohort.modules, start=1):
                generator = torch.Generator().manual_seed(derive_seed(seed, "module", module))
                try:
                    result = method.aggregate_module(
                        cohort.factors(module, device),
                        cohort.weights_U,
                        rank=result_rank,
                        generator=generator,
                        publication=publication,
                    )
                except FedLoraError as error:
                    raise FedLoraError(
                        error.reason, f"module {module!r}: {error.message}", hint=error.hint
                    ) from error
                lora_a, lora_b = publication.stored(result.factors)
                writer.put(lora_key(module, Factor.LORA_A), lora_a)
                writer.put(lora_key(module, Factor.LORA_B), lora_b)
                measurements[module] = result.measurements
                if progress is not None:
                    progress(done, len(cohort.modules))
            for key in cohort.saved:
                tensors = [file.tensor(key) for file in cohort.files]
                writer.put(key, weighted_sum(tensors, cohort.weights_U))
        return AggregationOutcome(
            rank=result_rank, num_bytes=writer.num_bytes, measurements=measurements
        )
