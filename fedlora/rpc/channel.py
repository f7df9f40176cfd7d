"""Channel and server options, each with its reason.

Sources: grpc's documentation of channel arguments; behaviour under faults measured with
grpcio 1.85.1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from fedlora.rpc.services import FEDERATION_SERVICE

__all__ = [
    "MAX_ANSWER_BYTES",
    "MAX_CHUNK_BYTES",
    "MAX_MESSAGE_BYTES",
    "SERVER_OPTIONS",
    "STREAM_WINDOW_BYTES",
    "client_options",
]

MAX_CHUNK_BYTES = 1024**2
"""payload bytes in one message"""

MAX_MESSAGE_BYTES = 2 * 1024**2
"""a whole message to the server: a chunk and room for its envelope; enforced after decompression"""

MAX_ANSWER_BYTES = 64 * 1024**2
"""a whole message from the server: a run with all its workers (some 0.3 KB each), all runs, or a
round with its certificate (some 2.4 MB for 560 layers at rank 128)"""

STREAM_WINDOW_BYTES = 4 * MAX_CHUNK_BYTES
"""what a client may send of a stream before the server has read it"""

SERVER_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
    # What one stream may have in flight is fixed: grpc's own estimate of it grows with the delay of
    # a busy server, so that uploads take most memory when it is scarcest.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
    # A second server on the port must fail to bind instead of sharing it.
    ("grpc.so_reuseport", 0),
    # Clients ping each minute; grpc's floor of five minutes would answer GOAWAY too_many_pings.
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
)

# Unary methods that may run twice without harm. Streams are not here: a retry policy on a client
# stream loses messages silently (measured); they resume by offset instead.
_IDEMPOTENT_METHODS = (
    "Register",
    "ConfirmAdapter",
    "GetUploadStatus",
    "ReportEvaluation",
    "Heartbeat",
)


def client_options() -> list[tuple[str, int | str]]:
    """Options of a client's channel, whichever services it calls."""
    config = {
        "methodConfig": [
            {
                "name": [{"service": FEDERATION_SERVICE, "method": m} for m in _IDEMPOTENT_METHODS],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
    return [
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # As at the server; the estimate also costs it a ping for every answer to a heartbeat.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
        # Notices a peer that vanished without closing, such as a host that lost power.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 0),
        # A connection for each channel: workers in one process must not share a window.
        ("grpc.use_local_subchannel_pool", 1),
        # A worker waits for its server: dial again soon, not after grpc's two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.service_config", json.dumps(config)),
    ]
