import signal
import subprocess
import sys
import threading

import pytest

from client_worker.stop import Stopped, StopRequest
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import ExitCode


def noticed(stop: StopRequest) -> None:
    """Returns once the signal just raised has become a request."""
    with pytest.raises(Stopped):
        stop.sleep(60)


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGTERM, ExitCode.OK), (signal.SIGINT, ExitCode.INTERRUPTED)],
)
def test_a_signal_ends_a_wait_for_a_lock_within_a_window(signum: signal.Signals, code: int):
    stop = StopRequest()
    # To a thread of its own: the main thread is not interrupted by the signal itself.
    elsewhere = threading.Timer(0.05, signal.raise_signal, [signum])

    def work() -> None:
        with stop.window():
            elsewhere.start()
            threading.Event().wait()

    with stop.handling_signals(), pytest.raises(Stopped):
        work()
    assert stop.exit_code == code
    assert signum.name in stop.reason


def test_outside_a_window_nothing_is_interrupted_and_the_next_window_does_not_open():
    stop = StopRequest()
    with stop.handling_signals():
        signal.raise_signal(signal.SIGTERM)
        noticed(stop)
        with pytest.raises(Stopped), stop.window():
            pytest.fail("the window opened")


def test_what_took_the_signals_before_takes_them_afterwards():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest().handling_signals():
        assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] != before
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert not [t for t in threading.enumerate() if t.name == "signals"]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_on_the_spot(second: signal.Signals):
    script = (
        "import signal, threading\n"
        "from client_worker.stop import StopRequest\n"
        "with StopRequest().handling_signals():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        f"    signal.raise_signal({int(second)})\n"
        "    threading.Event().wait()\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 128 + second


def test_no_except_exception_swallows_a_stop():
    assert not issubclass(Stopped, Exception)


def test_outside_a_window_the_handler_raises_nothing_but_cancels_what_waits():
    stop, cancelled = StopRequest(), threading.Event()

    def call() -> None:
        with stop.cancelling(cancelled.set):
            signal.raise_signal(signal.SIGTERM)
            # The handler has returned: only another thread can cancel now.
            assert cancelled.wait(10)
            raise FedLoraError(Reason.UNAVAILABLE, "the call was cancelled")

    with stop.handling_signals(), pytest.raises(Stopped):
        call()


def test_a_call_begun_after_the_request_is_cancelled_at_once():
    stop, cancelled = StopRequest(), []
    stop.request()
    with stop.cancelling(lambda: cancelled.append(True)):
        assert cancelled == [True]


def test_an_error_without_a_request_stays_what_it_is():
    stop = StopRequest()
    with pytest.raises(FedLoraError), stop.cancelling(lambda: None):
        raise FedLoraError(Reason.UNAVAILABLE, "away")


def test_what_is_over_is_not_cancelled():
    stop, cancelled = StopRequest(), []
    with stop.cancelling(lambda: cancelled.append(True)):
        pass
    stop.request()
    assert not cancelled


def test_other_threads_calls_go_on():
    stop, outcome = StopRequest(), []

    def beat() -> None:
        with stop.cancelling(lambda: outcome.append("cancelled")):
            stop.request()
            stop.check()
            outcome.append("answered")

    thread = threading.Thread(target=beat)
    thread.start()
    thread.join(10)
    assert outcome == ["answered"]
    with pytest.raises(Stopped):
        stop.check()


def test_a_pause_ends_with_the_signal():
    stop = StopRequest()
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGTERM])
    with stop.handling_signals():
        timer.start()
        with pytest.raises(Stopped):
            stop.sleep(60)
