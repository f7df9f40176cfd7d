"""How an upload's end is told, by what ended it."""

from __future__ import annotations

import asyncio

import pytest

from aggregator_service.pace import Pace, PaceRules
from aggregator_service.telemetry import Silent, UploadEnded, UploadResult
from aggregator_service.upload_story import UploadStory
from fedlora.errors import FedLoraError, Reason

RULES = PaceRules(
    idle_timeout_seconds=1.0, min_bytes_per_second=1.0, rate_seconds=1.0, deadline_seconds=1.0
)


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.uploads: list[UploadEnded] = []

    def upload_ended(self, upload: UploadEnded) -> None:
        self.uploads.append(upload)


async def ended_with(error: BaseException | None, *, replayed: bool = False) -> UploadEnded:
    told, pace = Told(), Pace(RULES, 100)
    story = UploadStory(told, pace)
    try:
        with story.until_its_end():
            story.has_place()
            pace.moved(7)
            if error is not None:
                raise error
            story.acknowledged(replayed=replayed)
    except (FedLoraError, asyncio.CancelledError):
        pass
    (upload,) = told.uploads
    return upload


@pytest.mark.parametrize(
    ("reason", "result"),
    [
        (Reason.SERVER_BUSY, UploadResult.BUSY),
        (Reason.UPLOAD_INCOMPLETE, UploadResult.CUT),
        (Reason.UPLOAD_STALLED, UploadResult.CUT),
        (Reason.OUT_OF_SPACE, UploadResult.DISK),
        (Reason.WRONG_ROUND, UploadResult.REFUSED),
        (Reason.DIGEST_MISMATCH, UploadResult.REFUSED),
    ],
)
async def test_an_error_says_how_it_ended(reason: Reason, result: UploadResult):
    upload = await ended_with(FedLoraError(reason, "so it is"))
    assert (upload.result, upload.num_bytes) == (result, 7)


@pytest.mark.parametrize("replayed", [False, True])
async def test_an_acknowledgement_is_a_good_end(replayed: bool):
    upload = await ended_with(None, replayed=replayed)
    assert upload.result is (UploadResult.REPLAYED if replayed else UploadResult.COMMITTED)
    assert upload.seconds >= 0


async def test_a_client_that_goes_away_has_cut_it():
    assert (await ended_with(asyncio.CancelledError())).result is UploadResult.CUT
