"""Which tensors a run exchanges: in its first adapter, and in an update of a round."""

from __future__ import annotations

from aggregator_service.rounds.state import RunState
from fedlora.adapters.extras import extra_manifest
from fedlora.adapters.names import Part, parse_key, part_key
from fedlora.adapters.spec import AdapterKind, AdapterLayout
from fedlora.codecs.spec import CodecSpec
from fedlora.codecs.updates import coded_manifest, create_codec
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import RoundPlan, Selection
from fedlora.tensors.manifest import TensorInfo, TensorManifest

__all__ = [
    "adapter_parts",
    "check_coded_manifest",
    "check_update_manifest",
    "initial_manifest",
    "plain_manifest",
]

_AXES = ((Part.A, 0), (Part.B, 1), (Part.CORE, 0))
"""where the rank stands in a part's shape"""


def adapter_parts(state: RunState) -> tuple[Part, ...]:
    """The parts of each module of the run's first adapter, version 0."""
    parts = {Part.A, Part.B}
    if state.spec.adapter.kind is AdapterKind.DORA:
        parts.add(Part.MAGNITUDE)
    if any(Part.CORE in plan.trained for plan in state.plans):
        parts.add(Part.CORE)
    return tuple(sorted(parts))


def initial_manifest(state: RunState, rank: int) -> TensorManifest:
    """The tensors of version 0 at a rank."""
    return _manifest(state, rank, adapter_parts(state))


def check_update_manifest(
    state: RunState, plan: RoundPlan, rank: int, manifest: TensorManifest
) -> int:
    """The rank of an update, once its tensors are known to be what the plan asked for.

    Args:
        state: of the run.
        plan: what the worker was asked for.
        rank: of the adapter that the worker was given.
        manifest: what it says that it sends.

    Raises:
        FedLoraError: MANIFEST_MISMATCH, naming the first difference.
    """
    if plan.selection is not Selection.ALL:
        expected = _selected_manifest(state, plan, rank, manifest)
    else:
        if plan.may_lower_rank:
            rank = _lowered(state, plan, rank, manifest)
        expected = _manifest(state, rank, plan.trained)
        extras = extra_manifest(expected, plan.sent_extras)
        expected = TensorManifest(tensors=(*expected.tensors, *extras.tensors))
    if difference := expected.difference(manifest):
        raise FedLoraError(Reason.MANIFEST_MISMATCH, f"the update is not the run's: {difference}")
    return rank


def plain_manifest(state: RunState, plan: RoundPlan, rank: int) -> TensorManifest:
    """The adapter's tensors that an update of all components says, whatever it is written in."""
    return _manifest(state, rank, plan.trained)


def check_coded_manifest(
    state: RunState, codec: CodecSpec, plan: RoundPlan, rank: int, manifest: TensorManifest
) -> None:
    """Refuses an update whose tensors are not those that the codec makes of what was asked for.

    Raises:
        FedLoraError: MANIFEST_MISMATCH, naming the first difference.
    """
    expected = coded_manifest(plain_manifest(state, plan, rank), create_codec(codec))
    if difference := expected.difference(manifest):
        raise FedLoraError(
            Reason.MANIFEST_MISMATCH,
            f"the update is not one of the run's, written in {codec.name.value}: {difference}",
        )


def _manifest(state: RunState, rank: int, parts: tuple[Part, ...]) -> TensorManifest:
    spec = state.spec
    return _layout(state).manifest(rank, spec.wire_dtype, kind=spec.adapter.kind, parts=parts)


def _layout(state: RunState) -> AdapterLayout:
    if state.layout is None:
        raise AssertionError("a task is given only after a worker has confirmed the adapter")
    return state.layout


def _lowered(state: RunState, plan: RoundPlan, rank: int, manifest: TensorManifest) -> int:
    """The rank that the first module says, if it is one that the worker may come back with."""
    hira = state.spec.adapter.kind is AdapterKind.HIRA
    first = _layout(state).modules[0].path
    for part, axis in _AXES:
        info = manifest.by_name.get(part_key(first, part, hira=hira))
        if part in plan.trained and info is not None and len(info.shape) > axis:
            least = max(1, int(plan.settings.get("min_rank", 1)))
            return min(rank, max(least, info.shape[axis]))
    return rank


def _selected_manifest(
    state: RunState, plan: RoundPlan, rank: int, manifest: TensorManifest
) -> TensorManifest:
    """What an update of chosen components must hold, given how many it says it chose."""
    dtype = state.spec.wire_dtype
    tensors = list(_manifest(state, rank, (Part.SELECTED,)).tensors)
    axes = dict(_AXES)
    shapes = {m.path: m for m in _layout(state).modules}
    for info in manifest.tensors:
        parsed = parse_key(info.name)
        part, module = parsed.part, shapes.get(parsed.path)
        if part is None or part not in plan.trained or module is None:
            continue
        if part not in axes or len(info.shape) <= axes[part]:
            count = rank
        else:
            # More than there are, or none: the comparison says what was expected.
            count = min(rank, max(1, info.shape[axes[part]]))
        tensors.append(TensorInfo(name=info.name, shape=module.shape(part, count), dtype=dtype))
    return TensorManifest(tensors=tuple(tensors))
