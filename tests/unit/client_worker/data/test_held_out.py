from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from client_worker.data.held_out import split_held_out

KEYS = st.lists(st.sampled_from("abc"), min_size=1, max_size=60)


@given(KEYS, st.floats(0, 0.99), st.integers(0, 2**32))
def test_the_parts_cover_everything_and_there_is_always_something_to_train_on(keys, fraction, seed):
    train, held_out = split_held_out(keys, fraction, seed=seed)
    assert sorted(train + held_out) == list(range(len(keys)))
    assert train
    assert bool(held_out) == (fraction > 0 and len(keys) > 1)
    assert (train, held_out) == split_held_out(keys, fraction, seed=seed)


@given(KEYS, st.floats(0.01, 0.9), st.integers(0, 2**32))
def test_every_label_gives_its_share_up_to_rounding(keys, fraction, seed):
    _, held_out = split_held_out(keys, fraction, seed=seed)
    share = len(held_out) / len(keys)
    given_up = Counter(keys[row] for row in held_out)
    for label, count in Counter(keys).items():
        assert abs(given_up[label] - share * count) < 1


def test_another_seed_holds_out_other_rows():
    keys = ["a"] * 100
    assert split_held_out(keys, 0.2, seed=1) != split_held_out(keys, 0.2, seed=2)
