from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from aggregator_service.caller import Caller, calling, current_caller
from fedlora.identity.names import AccessRole

WORKER = Caller(role=AccessRole.WORKER, name="w-1", issued_at=0.0, expires_at=1.0)


async def test_a_stream_that_is_not_read_to_its_end_is_closed_in_another_task():
    async def stream() -> AsyncGenerator[Caller | None, None]:
        with calling(WORKER):
            yield current_caller()

    answers = stream()
    assert await anext(answers) == WORKER
    # As the loop does with a generator that nobody reads any more.
    await asyncio.ensure_future(answers.aclose())


def test_a_call_is_its_callers_until_it_ends():
    with calling(WORKER):
        assert current_caller() == WORKER
    assert current_caller() is None
