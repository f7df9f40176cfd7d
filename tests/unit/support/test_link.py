import random

from support.link import Conditions, Pacer


def pacer(seed: int = 1) -> Pacer:
    return Pacer(random.Random(seed))


def test_a_perfect_link_takes_no_time():
    assert [pacer().arrival(Conditions(), 1000, now) for now in (1.0, 2.0)] == [1.0, 2.0]


def test_delay_varies_by_the_jitter_and_equal_seeds_give_equal_links():
    conditions = Conditions(delay_seconds=0.05, jitter_seconds=0.02)
    first, second = pacer(3), pacer(3)
    # A second apart: no piece has to wait for the one ahead.
    ways = [first.arrival(conditions, 10, float(now)) - now for now in range(1000)]
    assert ways == [second.arrival(conditions, 10, float(now)) - now for now in range(1000)]
    assert 0.0299 < min(ways) < 0.031
    assert 0.069 < max(ways) < 0.0701


def test_nothing_overtakes():
    conditions = Conditions(delay_seconds=0.05, jitter_seconds=0.05)
    link = pacer()
    arrivals = [link.arrival(conditions, 10, now / 1000) for now in range(200)]
    assert arrivals == sorted(arrivals)


def test_a_rate_counts_all_bytes_and_none_while_the_link_was_idle():
    conditions = Conditions(bytes_per_second=100.0)
    link = pacer()
    assert [link.arrival(conditions, 50, 0.0) for _ in range(3)] == [0.5, 1.0, 1.5]
    assert link.arrival(conditions, 50, 10.0) == 10.5


def test_a_lost_piece_comes_one_timeout_later_with_all_that_follow():
    conditions = Conditions(loss=1.0, retransmission_seconds=0.2)
    link = pacer()
    assert link.arrival(conditions, 10, 0.0) == 0.2
    assert link.arrival(Conditions(), 10, 0.1) == 0.2
    assert link.num_stalls == 1


def test_loss_is_as_frequent_as_asked():
    link = pacer()
    for now in range(10_000):
        link.arrival(Conditions(loss=0.02), 10, float(now))
    # 200 expected, standard deviation 14: five of them either way, for one fixed seed.
    assert 130 < link.num_stalls < 270
