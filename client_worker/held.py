"""The global adapter as this worker holds it: whole, on the CPU, beside the one being trained.

Of a later version the server sends only the parts that have changed since the one held; they are
laid over it. A worker that has missed rounds names the version it still has, however old, and is
sent what any of those rounds has moved.

What is held belongs to a session. A server that has forgotten a session was put back to an earlier
state, and may have given a number twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from fedlora.adapters.extras import extra_manifest, without_extras
from fedlora.adapters.shape import AdapterShape
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import AdapterHeader
from fedlora.tensors.manifest import TensorManifest

__all__ = ["HeldAdapter", "laid_over"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldAdapter:
    """One version, every tensor of it. Equal is only the same one: tensors are not compared."""

    session_token: str = ""
    version: int = -1
    tensors: Mapping[str, Tensor]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """what plug-ins have put beside it"""

    def is_version(self, session_token: str, version: int) -> bool:
        """Whether it is what the session means by that number."""
        return (self.session_token, self.version) == (session_token, version)

    def base_for(self, session_token: str, version: int) -> int | None:
        """The version to name when asking for another; None if this one is no help."""
        earlier = self.session_token == session_token and 0 <= self.version < version
        return self.version if earlier else None


def laid_over(
    held: HeldAdapter,
    header: AdapterHeader,
    payload: Mapping[str, Tensor],
    *,
    session_token: str,
    shape: AdapterShape,
    given_extras: tuple[str, ...] = (),
) -> HeldAdapter:
    """What the worker holds once a download has come.

    Args:
        held: what it held, and named in its request if `HeldAdapter.base_for` allowed it.
        header: of the download.
        payload: its tensors.
        session_token: session of the request.
        shape: of the run's adapter at the rank that this worker was given; a worker that has pruned
            its adapter is sent one of the rank that is left.
        given_extras: plug-ins' tensors that a version comes with, whole; the first one without.

    Raises:
        FedLoraError: MANIFEST_MISMATCH if the outcome is not the whole adapter.
    """
    base = held.base_for(session_token, header.adapter_version)
    if header.held_version not in (None, base):
        raise FedLoraError(
            Reason.MANIFEST_MISMATCH,
            f"adapter version {header.adapter_version} came as a change to version "
            f"{header.held_version}, expected {'all of it' if base is None else f'one to {base}'}",
        )
    new = without_extras(payload)
    extras = {key: tensor for key, tensor in payload.items() if key not in new}
    tensors = new if header.held_version is None else {**held.tensors, **new}
    found = TensorManifest.of(tensors)
    shape = replace(shape, rank=min(header.rank, shape.rank))
    if difference := shape.version(found).difference(found):
        raise FedLoraError(
            Reason.MANIFEST_MISMATCH,
            f"adapter version {header.adapter_version} does not fit the adapter attached here: "
            f"{difference}",
            hint="Use the same versions of transformers and peft on all workers",
        )
    adapter = shape.manifest(shape.parts)
    expected = extra_manifest(adapter, given_extras if header.adapter_version else ())
    if difference := expected.difference(TensorManifest.of(extras)):
        raise FedLoraError(
            Reason.MANIFEST_MISMATCH,
            f"adapter version {header.adapter_version} comes with other tensors of plug-ins than "
            f"the run's: {difference}",
            hint="Use the same versions of the plug-ins on the server and on all workers",
        )
    return HeldAdapter(
        session_token=session_token,
        version=header.adapter_version,
        tensors=tensors,
        extras=extras,
    )
