from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client_worker.data.batches import batches_of_round, by_length, num_steps


def order(lengths, batch_size, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(batches_of_round(lengths, batch_size=batch_size, steps=steps, generator=generator))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=70), st.integers(1, 9), st.integers(1, 3))
def test_each_epoch_sees_every_example_once(lengths, batch_size, epochs):
    per_epoch = num_steps(len(lengths), batch_size=batch_size, local_epochs=1.0, local_steps=0)
    batches = order(lengths, batch_size, per_epoch * epochs)
    assert len(batches) == per_epoch * epochs
    assert max(map(len, batches)) <= batch_size
    for begin in range(0, len(batches), per_epoch):
        epoch = batches[begin : begin + per_epoch]
        assert sorted(itertools.chain(*epoch)) == list(range(len(lengths)))


def test_the_order_depends_on_the_seed_alone():
    lengths = list(range(1, 100))
    assert order(lengths, 8, 20, seed=1) == order(lengths, 8, 20, seed=1)
    assert order(lengths, 8, 20, seed=1) != order(lengths, 8, 20, seed=2)


def test_texts_of_one_batch_are_of_similar_length():
    lengths = [1 + (i * 37) % 64 for i in range(640)]
    padded = sum(len(b) * max(lengths[i] for i in b) for b in order(lengths, 16, 40))
    assert padded < 1.15 * sum(lengths)


def test_batches_of_similar_length_still_come_in_random_order():
    lengths = list(range(256))
    firsts = [min(batch) for batch in order(lengths, 16, 16)]
    assert firsts != sorted(firsts)


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"),
    [(1.0, 0, 7), (2.0, 0, 14), (0.5, 0, 4), (0.01, 0, 1), (1.0, 3, 3)],
)
def test_steps_of_a_round(epochs, steps, expected):
    assert num_steps(50, batch_size=8, local_epochs=epochs, local_steps=steps) == expected


def test_scoring_takes_every_example_once_shortest_first():
    lengths = [5, 1, 4, 2, 3]
    assert by_length(lengths, 6) == [[1, 3], [4], [2], [0]]
    assert by_length(lengths, 12) == [[1, 3, 4], [2, 0]]
    assert Counter(itertools.chain(*by_length(lengths, 12))) == Counter(range(5))
