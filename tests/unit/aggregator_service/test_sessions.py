from __future__ import annotations

import pytest

from aggregator_service.rounds.state import WorkerRecord
from aggregator_service.sessions import check_session, issue, parse
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import WorkerState
from fedlora.runs.tasks import Capabilities


def record(epoch: int, digest: str) -> WorkerRecord:
    return WorkerRecord(
        name="host/with:odd.name",
        state=WorkerState.READY,
        epoch=epoch,
        session_hash=digest,
        instance_id="i",
        capabilities=Capabilities(),
        rank=4,
    )


def test_a_token_says_who_it_is_and_only_its_digest_is_needed_to_check_it():
    token, digest = issue("run-1", "host/with:odd.name", 3)
    parsed = parse(token)
    assert (parsed.run_id, parsed.worker, parsed.epoch) == ("run-1", "host/with:odd.name", 3)
    assert token not in digest
    check_session(parsed, record(3, digest))


def test_an_older_session_is_fenced_and_a_forged_one_unknown():
    old, _ = issue("run-1", "w", 1)
    _, digest = issue("run-1", "w", 2)
    forged, _ = issue("run-1", "w", 2)
    for token, reason in ((old, Reason.SESSION_FENCED), (forged, Reason.UNKNOWN_SESSION)):
        with pytest.raises(FedLoraError) as caught:
            check_session(parse(token), record(2, digest))
        assert caught.value.reason is reason


@pytest.mark.parametrize("token", ["", "x", "a/b/c/d", "1/b/c", "\u0661/b/c/d", "1/" + "x" * 600])
def test_what_never_was_a_token_is_an_unknown_session(token: str):
    with pytest.raises(FedLoraError) as caught:
        check_session(parse(token), None)
    assert caught.value.reason is Reason.UNKNOWN_SESSION
