"""Splits the training rows of one file over the slots of an experiment.

Every worker computes the whole split and keeps its own part, so the split is a function of the
file and the `PartitionSpec` alone. The parts are disjoint, cover every row, and none is empty.

iid        rows are dealt out in random order.
dirichlet  for each label, shares p ~ Dir(alpha, ..., alpha) over the slots (Yurochkin et al.,
           "Bayesian Nonparametric Federated Learning of Neural Networks", 2019,
           arXiv:1905.12022, section 4); a slot left empty takes a row from the largest.
column     rows with one value of the column stay together; groups go, largest first, to the slot
           with the fewest rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from client_worker.data.portable_random import PortableRandom
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.partition import PartitionScheme, PartitionSpec
from fedlora.runs.seeds import derive_seed

__all__ = ["partition"]


def partition(spec: PartitionSpec, keys: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Indices of each slot's rows, ascending.

    Args:
        spec: scheme, number of slots and seed.
        keys: for each row its label (dirichlet) or its value of the column (column); for iid only
            their number counts.

    Raises:
        FedLoraError: INVALID_DATA if there are fewer rows, or groups, than slots.
    """
    if len(keys) < spec.num_slots:
        raise FedLoraError(
            Reason.INVALID_DATA,
            f"{len(keys)} training rows cannot be split over {spec.num_slots} slots",
            hint="Lower partition.num_slots or bring more data",
        )
    rng = PortableRandom(derive_seed(spec.seed, "partition", spec.scheme.value))
    match spec.scheme:
        case PartitionScheme.IID:
            slots = _iid(len(keys), spec.num_slots, rng)
        case PartitionScheme.DIRICHLET:
            slots = _dirichlet(keys, spec.num_slots, spec.dirichlet_alpha, rng)
        case PartitionScheme.COLUMN:
            slots = _by_column(keys, spec, rng)
    return tuple(tuple(sorted(slot)) for slot in slots)


def _iid(num_rows: int, num_slots: int, rng: PortableRandom) -> list[list[int]]:
    order = rng.shuffled(range(num_rows))
    return [order[slot::num_slots] for slot in range(num_slots)]


def _dirichlet(
    keys: Sequence[str], num_slots: int, alpha: float, rng: PortableRandom
) -> list[list[int]]:
    slots: list[list[int]] = [[] for _ in range(num_slots)]
    for _, rows in sorted(_groups(keys).items()):
        order = rng.shuffled(rows)
        shares = rng.dirichlet(alpha, num_slots)
        begin, cumulative = 0, 0.0
        for slot, share in enumerate(shares):
            cumulative += share
            last = slot == num_slots - 1
            end = len(order) if last else max(begin, round(cumulative * len(order)))
            slots[slot] += order[begin:end]
            begin = end
    for rows_of_slot in slots:
        if not rows_of_slot:
            rows_of_slot.append(max(slots, key=len).pop())
    return slots


def _by_column(keys: Sequence[str], spec: PartitionSpec, rng: PortableRandom) -> list[list[int]]:
    groups = _groups(keys)
    if len(groups) < spec.num_slots:
        raise FedLoraError(
            Reason.INVALID_DATA,
            f"column {spec.column!r} has {len(groups)} values, too few for {spec.num_slots} slots",
            hint="Lower partition.num_slots or split by another column",
        )
    slots: list[list[int]] = [[] for _ in range(spec.num_slots)]
    names = rng.shuffled(sorted(groups))
    for name in sorted(names, key=lambda n: -len(groups[n])):
        min(slots, key=len).extend(groups[name])
    return slots


def _groups(keys: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        groups[key].append(row)
    return groups
