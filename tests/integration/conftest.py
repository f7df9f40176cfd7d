"""A small base model for real workers, a server whose wire is read, and who calls a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.planned_worker import Recording
from support.proofs import BearerTokens, Certificates, Proofs
from support.tiny_models import save_tiny_bert

from aggregator_service.transport import server


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny encoder without a head."""
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Recording:
    """Every payload that the servers of this test receive and send."""
    recording = Recording()
    monkeypatch.setattr(server, "FederationServicer", recording.servicer())
    return recording


@pytest.fixture(params=[Certificates, BearerTokens])
def proofs(request: pytest.FixtureRequest, tmp_path: Path) -> Proofs:
    """Members of a server that asks for certificates, and of one that asks for tokens."""
    return request.param(tmp_path / "members")
