"""A run's specification: adapter, method, round rules, training, data split, codec, plug-ins.

Field docstrings are the reference: configuration files, flags and documentation are
built from these dataclasses, so a default is written once, where its field is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from fedlora.adapters.spec import AdapterSpec, TaskType
from fedlora.codecs.spec import CodecSpec
from fedlora.errors import invalid_argument
from fedlora.runs.continual import ContinualSpec
from fedlora.runs.method import MethodSpec, RuleSpec
from fedlora.runs.partition import PartitionSpec
from fedlora.runs.rounds import FinalVersion, RoundRules
from fedlora.runs.score_names import judged_scores
from fedlora.runs.training import TrainingSpec
from fedlora.tensors.manifest import FLOATS, DataType

__all__ = ["RunSpec"]

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Everything that defines a run."""

    name: str
    """letters, digits, "-", "_" and "."; unique on a server"""
    adapter: AdapterSpec
    method: MethodSpec = field(default_factory=MethodSpec)
    rounds: RoundRules = field(default_factory=RoundRules)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    partition: PartitionSpec | None = None
    """absent where every worker brings its own data"""
    seed: int = 0
    """seed of everything random in the run"""
    wire_dtype: DataType = field(default=DataType.F32, metadata={"among": FLOATS})
    """element type of adapters on the wire and on disk, and of updates where no codec is set"""
    codec: CodecSpec | None = None
    """how updates are written; absent: plainly, in wire_dtype"""
    plugins: tuple[RuleSpec, ...] = ()
    """what goes into local training beside the method, each under its own name; kept sorted"""
    continual: ContinualSpec | None = None
    """classes or tasks that join later; absent where all examples are there from the beginning"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "plugins", tuple(sorted(self.plugins, key=lambda p: p.name)))
        names = [plugin.name for plugin in self.plugins]
        if len({*names}) != len(names):
            raise invalid_argument(f"a plug-in is named twice in {names}")
        if not _RUN_NAME.fullmatch(self.name):
            raise invalid_argument(
                f"run.name must be 1 to 64 letters, digits, '-', '_' or '.', beginning with a "
                f"letter or digit, got {self.name[:80]!r}"
            )
        if not 0 <= self.seed < 2**63:
            raise invalid_argument(f"run.seed must lie in [0, 2^63), got {self.seed}")
        known = judged_scores(self.adapter.task_type)
        if self.rounds.best_by and self.rounds.best_by not in known:
            raise invalid_argument(
                f"rounds.best_by must be one of {', '.join(known)} for "
                f"{self.adapter.task_type.value}, got {self.rounds.best_by[:80]!r}"
            )
        if self.wire_dtype not in FLOATS:
            raise invalid_argument(
                f"run.wire_dtype must be one of {', '.join(FLOATS)}, got {self.wire_dtype.value}"
            )
        if self.continual is not None:
            self._check_continual(self.continual)

    def _check_continual(self, stream: ContinualSpec) -> None:
        labels, rules = self.adapter.labels, self.rounds
        if stream.by_label and self.adapter.task_type is not TaskType.SEQUENCE_CLASSIFICATION:
            raise invalid_argument(
                "continual.column is empty, so that labels join, and "
                f"{self.adapter.task_type.value} has none",
                "Name the column by whose values the examples join",
            )
        if stream.by_label and {*stream.order} != {*labels}:
            odd = sorted({*stream.order} ^ {*labels})
            raise invalid_argument(
                f"continual.order must list the run's {len(labels)} labels, and differs in "
                f"{odd!r:.200}"
            )
        last = stream.joins_in_round(stream.num_experiences)
        if rules.num_rounds < last:
            raise invalid_argument(
                f"rounds.num_rounds is {rules.num_rounds}, and the last of continual.sizes would "
                f"join in round {last}"
            )
        if rules.early_stopping_rounds or rules.final_version is FinalVersion.BEST:
            raise invalid_argument(
                "rounds.early_stopping_rounds and rounds.final_version = best compare scores of "
                "rounds, and in a run with a section [continual] these are of ever more examples",
                "Leave both out",
            )
