"""When a process that has died is started again."""

from __future__ import annotations

from fedlora.exit_codes import ExitCode
from fedlora_cli.supervision import Backoff, is_worth_restarting


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def longest() -> float:
    return 1.0


def test_pauses_grow_and_are_waited_for():
    clock = Clock()
    backoff = Backoff(clock=clock, draw=longest)
    delays = []
    for _ in range(3):
        delays.append(backoff.next_delay(1.0))
        assert backoff.is_waiting
        assert not backoff.is_over
        clock.now += delays[-1]
        assert backoff.is_over
        backoff.begin()
        assert not backoff.is_waiting
    assert delays == [1.0, 2.0, 4.0]


def test_too_many_deaths_in_a_row_are_the_end():
    backoff = Backoff(most=2, clock=Clock(), draw=longest)
    assert [backoff.next_delay(1.0) for _ in range(3)] == [1.0, 2.0, None]


def test_a_healthy_life_begins_the_count_anew():
    backoff = Backoff(most=2, clock=Clock(), draw=longest)
    assert [backoff.next_delay(1.0), backoff.next_delay(1.0)] == [1.0, 2.0]
    assert backoff.next_delay(3600.0) == 1.0


def test_without_a_limit_the_pause_has_a_longest():
    backoff = Backoff(most=0, clock=Clock(), draw=longest)
    assert [backoff.next_delay(0.0) for _ in range(20)][-1] == 30.0


def test_two_that_die_together_come_back_apart_each_after_half_its_pause_at_least():
    clock = Clock()
    delays = [
        Backoff(clock=clock, draw=lambda share=share: share).next_delay(1.0) for share in (0, 0.5)
    ]
    assert delays == [0.5, 0.75]
    drawn = {Backoff(clock=clock).next_delay(1.0) for _ in range(20)}
    assert len(drawn) > 1
    assert all(0.5 <= delay <= 1.0 for delay in drawn)


def test_what_cannot_succeed_is_not_started_again():
    assert {c for c in ExitCode if not is_worth_restarting(c)} == {
        ExitCode.USAGE,
        ExitCode.REFUSED,
        ExitCode.FENCED,
        ExitCode.DEVICE,
    }
