"""Laws that every server optimiser of the registry keeps."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.builders import normal

from aggregator_service.aggregation.registry import SERVER_OPTIMIZERS

every_optimizer = pytest.mark.parametrize("name", sorted(SERVER_OPTIMIZERS))


def walk(optimizer, current, changes):
    """Where a tensor goes when each round proposes a change of it."""
    state, path = {}, [current]
    for change in changes:
        moved, state = optimizer.step(path[-1], path[-1] + change, state)
        path.append(moved)
    return path, state


@every_optimizer
def test_a_round_that_changes_nothing_moves_nothing_at_first(name):
    current = normal(1, 3, 5)
    moved, _ = SERVER_OPTIMIZERS[name].step(current, current, {})
    assert torch.equal(moved, current)


@every_optimizer
def test_a_steady_change_is_followed_in_its_direction(name):
    current, change = normal(1, 3, 5), normal(2, 3, 5)
    path, _ = walk(SERVER_OPTIMIZERS[name], current, [change] * 6)
    for before, after in itertools.pairwise(path):
        assert torch.equal((after - before).sign(), change.sign())


@every_optimizer
def test_every_entry_goes_its_own_way(name):
    current, changes = normal(1, 3, 5), [normal(2 + t, 3, 5) for t in range(4)]
    whole, _ = walk(SERVER_OPTIMIZERS[name], current, changes)
    row, _ = walk(SERVER_OPTIMIZERS[name], current[1:2], [c[1:2] for c in changes])
    assert torch.equal(whole[-1][1:2], row[-1])


@every_optimizer
def test_its_memory_is_finite_float64_of_the_tensors_shape(name):
    _, state = walk(SERVER_OPTIMIZERS[name], normal(1, 3, 5), [normal(2, 3, 5) * 1e-9] * 3)
    assert state
    for tensor in state.values():
        assert tensor.dtype == torch.float64
        assert tensor.shape == (3, 5)
        assert bool(torch.isfinite(tensor).all())


@every_optimizer
def test_going_on_from_its_memory_is_never_having_stopped(name):
    optimizer = SERVER_OPTIMIZERS[name]
    current, changes = normal(1, 3, 5), [normal(2 + t, 3, 5) for t in range(5)]
    path, _ = walk(optimizer, current, changes)
    half, state = walk(optimizer, current, changes[:3])
    kept = {key: tensor.clone() for key, tensor in state.items()}
    now = half[-1]
    for change in changes[3:]:
        now, kept = optimizer.step(now, now + change, kept)
    assert torch.equal(now, path[-1])
