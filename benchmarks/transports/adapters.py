"""Adapters of a chosen size, and runs that move them without any training."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from fedlora.adapters.spec import AdaptedModule, AdapterLayout, AdapterSpec, BaseModel, TaskType
from fedlora.runs.method import MethodSpec
from fedlora.runs.rounds import RoundRules
from fedlora.runs.spec import RunSpec
from fedlora.runs.training import TrainingSpec

__all__ = ["LARGE", "MEGABYTE", "MIDDLE", "SMALL", "TINY", "Adapter", "run_of"]


@dataclass(frozen=True, slots=True)
class Adapter:
    """Factors A, rank x width, and B, width x rank, of some layers, in float32."""

    layers: int
    rank: int
    width: int = 4096

    @property
    def num_bytes(self) -> int:
        """Bytes of all values."""
        return 8 * self.layers * self.rank * self.width

    @property
    def layout(self) -> AdapterLayout:
        """What workers declare."""
        modules = tuple(
            AdaptedModule(path=f"layers.{i}.query", in_features=self.width, out_features=self.width)
            for i in range(self.layers)
        )
        return AdapterLayout(modules=modules, saved_tensors=(), base_fingerprint="sha256:base")

    def fields(self) -> dict[str, int]:
        """For another process."""
        return asdict(self)


TINY = Adapter(layers=1, rank=16, width=1024)
MEGABYTE = Adapter(layers=2, rank=16)
SMALL = Adapter(layers=16, rank=16)
MIDDLE = Adapter(layers=64, rank=16)
LARGE = Adapter(layers=64, rank=64)


def run_of(
    adapter: Adapter,
    *,
    workers: int,
    rounds: int,
    cohort: int = 0,
    method: str = "fedit",
    certify_every: int = 0,
) -> RunSpec:
    """A run of `rounds` with all `workers`, or `cohort` of them in each; nothing is scored."""
    return RunSpec(
        name="transport",
        adapter=AdapterSpec(
            base_model=BaseModel(model_id="model"),
            task_type=TaskType.SEQUENCE_CLASSIFICATION,
            r=adapter.rank,
            target_modules=("query",),
            labels=("a", "b"),
        ),
        method=MethodSpec(name=method),
        rounds=RoundRules(
            num_rounds=rounds,
            min_workers=workers,
            cohort_size=cohort,
            quorum=cohort or workers,
            deadline_seconds=3600,
            evaluate=False,
            certify_every=certify_every,
        ),
        training=TrainingSpec(),
    )
