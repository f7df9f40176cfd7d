import pytest
from support.worker_harness import FakeTime

from client_worker.patience import Patience
from fedlora.errors import FedLoraError, Reason


def failing(*reasons: Reason):
    """An attempt that fails for these reasons, one after the other, and then succeeds."""
    left = list(reasons)

    def attempt() -> str:
        if left:
            raise FedLoraError(left.pop(0), "not now")
        return "done"

    return attempt


def patience(limit_seconds: float, uniform: float = 0.0) -> tuple[Patience, FakeTime]:
    time = FakeTime()
    made = Patience(
        limit_seconds=limit_seconds, clock=time.clock, sleep=time.sleep, uniform=lambda: uniform
    )
    return made, time


def test_transient_failures_are_overcome():
    made, time = patience(100)
    assert made.insist("it", failing(Reason.UNAVAILABLE, Reason.INTERNAL)) == "done"
    assert len(time.pauses) == 2


def test_any_other_failure_is_raised_at_once():
    made, time = patience(100)
    with pytest.raises(FedLoraError) as caught:
        made.insist("it", failing(Reason.WRONG_ROUND))
    assert caught.value.reason is Reason.WRONG_ROUND
    assert not time.pauses


def test_pauses_double_up_to_a_cap_and_lie_between_half_and_all_of_it():
    reasons = [Reason.UNAVAILABLE] * 10
    low, least = patience(0, uniform=0.0)
    high, most = patience(0, uniform=1.0)
    low.insist("it", failing(*reasons))
    high.insist("it", failing(*reasons))
    assert most.pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10, 10])
    assert least.pauses == pytest.approx([p / 2 for p in most.pauses])


@pytest.mark.parametrize(("uniform", "pause"), [(0.0, 7.0), (1.0, 10.5)])
def test_a_server_that_says_when_to_come_back_is_asked_then_and_not_before(
    uniform: float, pause: float
):
    made, time = patience(0, uniform=uniform)
    refusals = [FedLoraError(Reason.SERVER_BUSY, "full", retry_seconds=7.0)] * 2

    def attempt() -> str:
        if refusals:
            raise refusals.pop()
        return "done"

    assert made.insist("sending", attempt) == "done"
    assert time.pauses == [pause, pause]


def test_the_limit_ends_it_at_the_second_and_says_for_how_long_it_was_tried():
    made, time = patience(30)
    with pytest.raises(FedLoraError, match="asking: no success for 30 s: not now") as caught:
        made.insist("asking", failing(*[Reason.UNAVAILABLE] * 1000))
    assert caught.value.reason is Reason.UNAVAILABLE
    assert "worker.wait_for_server_seconds is 30" in caught.value.hint
    assert sum(time.pauses) == pytest.approx(30)


def test_without_a_limit_it_goes_on_for_days():
    made, time = patience(0)
    assert made.insist("it", failing(*[Reason.UNAVAILABLE] * 50_000)) == "done"
    assert sum(time.pauses) > 2 * 86_400


def test_a_sign_of_life_from_elsewhere_starts_the_limit_anew():
    made, time = patience(30)
    failures = 0

    def attempt() -> str:
        nonlocal failures
        failures += 1
        if failures < 40:
            made.succeeded()
            raise FedLoraError(Reason.DEADLINE_EXCEEDED, "slow")
        return "done"

    assert made.insist("it", attempt) == "done"
    assert sum(time.pauses) > 100


def test_a_worker_that_trained_through_an_outage_still_has_all_its_patience():
    made, time = patience(30)
    time.now += 3600
    with pytest.raises(FedLoraError):
        made.insist("submitting", failing(*[Reason.UNAVAILABLE] * 1000))
    assert sum(time.pauses) == pytest.approx(30)


def test_damaged_payloads_are_sent_three_times_and_no_more():
    made, _ = patience(0)
    two = [Reason.DIGEST_MISMATCH] * 2
    assert made.insist("it", failing(*two)) == "done"
    with pytest.raises(FedLoraError) as caught:
        made.insist("it", failing(*two, Reason.UNAVAILABLE, Reason.DIGEST_MISMATCH))
    assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_each_sign_of_life_is_passed_on_and_no_failure_is():
    signs = []
    time = FakeTime()
    made = Patience(
        limit_seconds=100,
        on_success=lambda: signs.append(time.clock()),
        clock=time.clock,
        sleep=time.sleep,
        uniform=lambda: 0.0,
    )
    made.insist("it", failing(Reason.UNAVAILABLE, Reason.INTERNAL))
    assert len(signs) == 1
    made.succeeded()
    assert len(signs) == 2


def test_every_retry_is_told_with_its_reason_and_a_last_failure_is_none():
    retries: list[Reason] = []
    made = Patience(
        limit_seconds=100, on_retry=retries.append, sleep=lambda _: None, uniform=lambda: 0.0
    )
    made.insist("it", failing(Reason.UNAVAILABLE, Reason.INTERNAL))
    with pytest.raises(FedLoraError):
        made.insist("it", failing(Reason.WRONG_ROUND))
    assert retries == [Reason.UNAVAILABLE, Reason.INTERNAL]
