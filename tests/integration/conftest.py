"""A small base model for real workers, and a server whose wire is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.planned_worker import Recording
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
