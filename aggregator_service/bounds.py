"""What the server takes at a time: the bounds of a configuration, with the machine's own sizes.

Memory: a stream holds what has come and is not read yet, at most its flow-control window. So
(uploads that run + streams that wait) x STREAM_WINDOW_BYTES is all that uploads can pile up.
"""

from __future__ import annotations

import shutil

from aggregator_service.admission import AdmissionRules
from aggregator_service.config import AggregatorConfig
from aggregator_service.pace import PaceRules
from fedlora.process_limits import memory_bytes
from fedlora.rpc.channel import MAX_CHUNK_BYTES, STREAM_WINDOW_BYTES

__all__ = ["admission_rules", "pace_rules"]

_MEMORY_SHARE = 4
"""one part in so many is for uploads; combining takes half of the rest by default"""

_MOST_UPLOADS = 512
"""by default; beyond it the disk is what they wait for"""

_WAITING_SHARE = 4
"""for so many uploads that run, one stream may wait"""


def pace_rules(config: AggregatorConfig) -> PaceRules:
    """What every transfer is held to."""
    return PaceRules(
        idle_timeout_seconds=config.idle_timeout_seconds,
        min_bytes_per_second=config.min_bytes_per_second,
        rate_seconds=config.min_rate_seconds,
        deadline_seconds=config.upload_deadline_seconds,
    )


def admission_rules(config: AggregatorConfig) -> AdmissionRules:
    """How many uploads, and how many bytes of them, run at a time.

    The state directory must be there: its disk is looked at.
    """
    max_uploads = config.max_uploads or _uploads_in_memory()
    chunk_seconds = MAX_CHUNK_BYTES / config.min_bytes_per_second
    return AdmissionRules(
        max_uploads=max_uploads,
        max_bytes=config.max_upload_bytes or shutil.disk_usage(config.state_dir).free // 2,
        max_waiting=_waiting(max_uploads),
        wait_seconds=config.upload_wait_seconds,
        # A chunk is heard of when all of it is here: up to then any line is that far behind.
        behind_seconds=min(chunk_seconds, config.idle_timeout_seconds, config.min_rate_seconds),
    )


def _waiting(max_uploads: int) -> int:
    return max(1, max_uploads // _WAITING_SHARE)


def _uploads_in_memory() -> int:
    windows = memory_bytes() // _MEMORY_SHARE // STREAM_WINDOW_BYTES
    return min(_MOST_UPLOADS, max(1, windows * _WAITING_SHARE // (_WAITING_SHARE + 1)))
