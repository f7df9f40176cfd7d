import threading

from client_worker.progress import ProgressReporter
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import Progress


def progress(step: int) -> Progress:
    return Progress(task_id="t", completed_steps=step, total_steps=1000)


def test_while_one_report_is_under_way_only_the_newest_value_is_kept():
    sending, go_on, sent = threading.Event(), threading.Event(), []
    last = threading.Event()

    def send(value: Progress) -> None:
        sent.append(value.completed_steps)
        sending.set()
        assert go_on.wait(10)
        if value.completed_steps == 500:
            last.set()

    reporter = ProgressReporter(send, pause=lambda closing, seconds: None)
    reporter.start()
    reporter.offer(progress(0))
    assert sending.wait(10)
    for step in range(1, 501):
        reporter.offer(progress(step))  # returns at once although nothing is sent
    go_on.set()
    assert last.wait(10)
    reporter.close()
    assert sent == [0, 500]


def test_between_two_reports_lies_a_second():
    pauses, enough = [], threading.Event()

    def pause(closing: threading.Event, seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            enough.set()
        else:
            reporter.offer(progress(len(pauses)))

    reporter = ProgressReporter(lambda _: None, pause=pause)
    reporter.start()
    reporter.offer(progress(0))
    assert enough.wait(10)
    reporter.close()
    assert pauses == [1.0, 1.0, 1.0]


def test_a_report_that_fails_is_forgotten_and_the_next_one_goes_out():
    sent, second = [], threading.Event()

    def send(value: Progress) -> None:
        sent.append(value.completed_steps)
        if len(sent) == 1:
            reporter.offer(progress(2))
            raise FedLoraError(Reason.UNAVAILABLE, "away")
        second.set()

    reporter = ProgressReporter(send, pause=lambda closing, seconds: None)
    reporter.start()
    reporter.offer(progress(1))
    assert second.wait(10)
    reporter.close()
    assert sent == [1, 2]


def test_closing_does_not_wait_for_the_second_to_pass():
    sent = threading.Event()
    reporter = ProgressReporter(lambda _: sent.set())
    reporter.start()
    reporter.offer(progress(1))
    assert sent.wait(10)
    reporter.close()
    assert not [t for t in threading.enumerate() if t.name == "progress"]
