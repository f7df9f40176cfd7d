"""Heartbeats over one stream, which the first of them opens and the first after its end opens anew.

A call for each beat would cost the server twice as much (benchmarks/reliability.md). Otherwise it
is the same: a beat waits for its own answer, so what is wrong with the session, the way or the
server shows with the beat that meets it. One that is not to be answered costs the server less
still, and shows it with the next.

No retry policy of gRPC's may stand on a stream, so a blip is ridden out here.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Protocol

from client_worker.transport.calls import Responses, converting
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import federation_pb2 as pb

__all__ = ["KeepAlive"]

_PAUSES_SECONDS = (0.2, 0.4, 0.8)
"""between the tries of one beat: as long as gRPC's own for small calls (fedlora.rpc.channel)"""

_AGAIN = frozenset({Reason.UNAVAILABLE, Reason.DEADLINE_EXCEEDED})
"""a stream that was cut, or that the server has ended after a silence"""


_FAREWELL_SECONDS = 0.2
"""for a server to end its side too, so that it counts no stream as cut off that was not"""


class Answers(Responses[pb.HeartbeatResponse], Protocol):
    """The response stream."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Calls back at its end; False if it has ended."""
        ...

    def is_active(self) -> bool:
        """It has not ended."""
        ...


class Method(Protocol):
    """KeepAlive of a stub."""

    def __call__(self, requests: Iterator[pb.HeartbeatRequest], /) -> Answers:
        """Opens a stream."""
        ...


class KeepAlive:
    """The stream of one session at a time.

    Args:
        peer: address, for errors.
    """

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._stream: _Stream | None = None
        self._one_beat = threading.Lock()
        self._changing = threading.Lock()
        self._closing = threading.Event()

    def beat(
        self, method: Method, request: pb.HeartbeatRequest, *, seconds: float
    ) -> pb.HeartbeatResponse:
        """Sends a beat and waits for its answer; from one thread at a time, others wait.

        Args:
            method: over which to beat; another one than before takes a stream of its own.
            request: the beat.
            seconds: longest time for an answer, tries included.

        Raises:
            FedLoraError: the server's, which has then ended the stream; DEADLINE_EXCEEDED without
                an answer in time; UNAVAILABLE where there is no server, or after `close`.
        """
        until = time.monotonic() + seconds
        pauses = iter(_PAUSES_SECONDS)
        with self._one_beat:
            while True:
                try:
                    return self._open(method).ask(request, until)
                except FedLoraError as error:
                    self.end()
                    pause = next(pauses, math.inf)
                    too_late = time.monotonic() + pause >= until
                    if error.reason not in _AGAIN or too_late or self._closing.wait(pause):
                        raise

    def beat_unanswered(self, method: Method, request: pb.HeartbeatRequest) -> bool:
        """Sends a beat, over a stream that stands, and waits for nothing.

        Args:
            method: over which the beats before it went.
            request: the beat; what is sent of it asks for no answer.

        Returns:
            Whether it was sent; not if no stream of the method's stands.
        """
        with self._one_beat, self._changing:
            stream = self._stream
            if stream is None or stream.method is not method:
                return False
            return stream.send(request)

    def end(self) -> None:
        """Ends the stream, if there is one; a later beat opens another."""
        with self._changing:
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.end()

    def close(self) -> None:
        """Ends the stream, a beat under way included, and refuses all that come."""
        self._closing.set()
        self.end()

    def _open(self, method: Method) -> _Stream:
        with self._changing:
            if self._closing.is_set():
                raise FedLoraError(Reason.UNAVAILABLE, f"the connection to {self._peer} is closed")
            if self._stream is not None and self._stream.method is not method:
                self._stream.end()
                self._stream = None
            if self._stream is None:
                self._stream = _Stream(method, self._peer)
            return self._stream


class _Stream:
    """A stream of beats that has been opened."""

    def __init__(self, method: Method, peer: str) -> None:
        self.method = method
        self._peer = peer
        self._requests: SimpleQueue[pb.HeartbeatRequest | None] = SimpleQueue()
        self._answers = method(iter(self._requests.get, None))
        self._converted = converting(self._answers, peer)

    def ask(self, request: pb.HeartbeatRequest, until: float) -> pb.HeartbeatResponse:
        """What the server answers; see `KeepAlive.beat`."""
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._answers.cancel()

        # An iterator of gRPC's waits for ever: another thread must see to it that it does not.
        timer = threading.Timer(until - time.monotonic(), give_up)
        timer.daemon = True
        timer.start()
        try:
            self._requests.put(request)
            answer = next(self._converted, None)
        except FedLoraError as error:
            if late.is_set():
                raise FedLoraError(
                    Reason.DEADLINE_EXCEEDED, f"{self._peer} has not answered a heartbeat in time"
                ) from error
            raise
        finally:
            timer.cancel()
            timer.join()
        if answer is None:
            raise FedLoraError(Reason.UNAVAILABLE, f"{self._peer} has ended the heartbeats")
        return answer

    def send(self, request: pb.HeartbeatRequest) -> bool:
        """Sends a beat that is not to be answered; False if the stream has ended."""
        if not self._answers.is_active():
            return False
        quiet = pb.HeartbeatRequest(unanswered=True)
        quiet.MergeFrom(request)
        self._requests.put(quiet)
        return True

    def end(self) -> None:
        """Ends it, and the thread of gRPC's that waits for the next request."""
        self._requests.put(None)
        ended = threading.Event()
        if self._answers.add_callback(ended.set):
            ended.wait(_FAREWELL_SECONDS)
        self._answers.cancel()
