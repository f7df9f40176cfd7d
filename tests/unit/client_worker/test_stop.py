import signal

import pytest

from client_worker.stop import Stopped, StopRequest
from fedlora.exit_codes import ExitCode


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGTERM, ExitCode.OK), (signal.SIGINT, ExitCode.INTERRUPTED)],
)
def test_a_signal_within_a_window_raises_and_sets_the_exit_code(signum: signal.Signals, code: int):
    stop = StopRequest()
    with stop.handling_signals(), pytest.raises(Stopped), stop.window():
        signal.raise_signal(signum)
    assert stop.exit_code == code
    assert signum.name in stop.reason


def test_outside_a_window_nothing_is_interrupted_and_the_next_window_does_not_open():
    stop = StopRequest()
    with stop.handling_signals():
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(Stopped), stop.window():
            pytest.fail("the window opened")


def test_after_the_first_signal_the_second_meets_the_default_action():
    stop = StopRequest()
    before = signal.getsignal(signal.SIGTERM)
    with stop.handling_signals():
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


def test_no_except_exception_swallows_a_stop():
    assert not issubclass(Stopped, Exception)
