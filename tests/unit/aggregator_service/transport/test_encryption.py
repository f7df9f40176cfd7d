"""What a server warns of before it serves: who can read along, and what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.federation import config

from aggregator_service.transport.encryption import check_exposure

LOOPBACK, ANYWHERE = "127.0.0.1:8400", "0.0.0.0:8400"


def warned(tmp_path: Path, **settings: Any) -> list[dict[str, Any]]:
    with capture_logs() as lines:
        check_exposure(config(tmp_path, **settings))
    return [dict(line) for line in lines]


def test_plain_text_beyond_this_machine_is_warned_of_though_it_was_asked_for(tmp_path: Path):
    assert warned(tmp_path, address=ANYWHERE, insecure=True) == [
        {"event": "plain_text", "log_level": "warning", "address": ANYWHERE, "tokens": False}
    ]
    tokens = tmp_path / "tokens"
    (line,) = warned(tmp_path, address=ANYWHERE, insecure=True, tokens_file=tokens)
    assert line["tokens"] is True


def test_plain_health_checks_beyond_this_machine_are_warned_of(tmp_path: Path):
    # Encrypted or not: whoever reaches the port is answered.
    for identity in (None, tmp_path):
        assert warned(tmp_path, identity_dir=identity, health_address=ANYWHERE) == [
            {
                "event": "health_in_plain_text",
                "log_level": "warning",
                "address": ANYWHERE,
                "shows": "whether the server serves",
            }
        ]


@pytest.mark.parametrize(
    "settings",
    [
        {"address": LOOPBACK},
        {"address": LOOPBACK, "insecure": True},
        {"address": LOOPBACK, "health_address": "127.0.0.1:8402"},
        {"address": ANYWHERE, "identity_dir": Path("server")},
        {"address": ANYWHERE, "identity_dir": Path("server"), "insecure": True},
    ],
)
def test_what_nobody_else_can_read_is_not_warned_of(tmp_path: Path, settings: dict[str, Any]):
    assert warned(tmp_path, **settings) == []
