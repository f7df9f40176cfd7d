"""Who may call what: one line for every method that is served, and none for what is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from fedlora.identity.names import AccessRole
from fedlora.rpc.services import (
    ADMIN_SERVICE,
    ENROLMENT_SERVICE,
    FEDERATION_SERVICE,
    HEALTH_SERVICE,
    IDENTITY_SERVICE,
    REFLECTION_SERVICE,
)

__all__ = ["ANYONE", "ROLES", "Access"]

Access: TypeAlias = frozenset[AccessRole] | None
"""roles that may call a method; None where nobody needs to say who he is"""

ANYONE: Final = None

_WORKER: Access = frozenset({AccessRole.WORKER})
_OPERATOR: Access = frozenset({AccessRole.OPERATOR})
_LOOKING: Access = frozenset({AccessRole.OPERATOR, AccessRole.OBSERVER})
_MEMBER: Access = frozenset({AccessRole.WORKER, AccessRole.OPERATOR, AccessRole.OBSERVER})

_SERVICES: Mapping[str, Mapping[str, Access]] = {
    FEDERATION_SERVICE: {
        "Register": _WORKER,
        "ConfirmAdapter": _WORKER,
        "AwaitTask": _WORKER,
        "PullAdapter": _WORKER,
        "PushUpdate": _WORKER,
        "GetUploadStatus": _WORKER,
        "ReportEvaluation": _WORKER,
        "ReportMetrics": _WORKER,
        "KeepAlive": _WORKER,
        "Heartbeat": _WORKER,
        "Leave": _WORKER,
    },
    ADMIN_SERVICE: {
        "CreateRun": _OPERATOR,
        "StartRun": _OPERATOR,
        "StopRun": _OPERATOR,
        "ListRuns": _LOOKING,
        "GetRun": _LOOKING,
        "ListRounds": _LOOKING,
        "GetRoundReport": _LOOKING,
        "WatchRun": _LOOKING,
        # The adapter is what all of this is for: to look on is not to take it along.
        "ExportAdapter": _OPERATOR,
        "Invite": _OPERATOR,
        "ListMembers": _OPERATOR,
        "Revoke": _OPERATOR,
    },
    IDENTITY_SERVICE: {"Renew": _MEMBER},
    # Its join token is the proof.
    ENROLMENT_SERVICE: {"Enrol": ANYONE},
    # Says no more than that a server serves.
    HEALTH_SERVICE: {"Check": ANYONE, "Watch": ANYONE, "List": ANYONE},
    REFLECTION_SERVICE: {"ServerReflectionInfo": _MEMBER},
}

ROLES: Mapping[str, Access] = {
    f"/{service}/{method}": access
    for service, methods in _SERVICES.items()
    for method, access in methods.items()
}
"""by a method's path"""
