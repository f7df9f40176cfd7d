"""Lengths and directions: there and back again, and what has no direction."""

from __future__ import annotations

import pytest
import torch
from support.builders import normal
from support.reference import EPS

from aggregator_service.aggregation.polar import Axis, axis_of_a, axis_of_b, polar

A, B = normal(1, 4, 17), normal(2, 24, 4)


def test_one_vector_worked_by_hand():
    found = polar(torch.tensor([[3.0, 4.0]]).double(), 1)
    assert found.lengths.tolist() == [[5.0]]
    torch.testing.assert_close(found.directions, torch.tensor([[0.6, 0.8]]).double())


@pytest.mark.parametrize("axis", list(Axis))
def test_what_is_taken_apart_is_put_together_again_with_unit_directions(axis):
    for matrix, dim in ((A, axis_of_a(axis)), (B, axis_of_b(axis))):
        found = polar(matrix, dim)
        torch.testing.assert_close(found.matrix(), matrix, rtol=4 * EPS, atol=0)
        norms = found.directions.norm(dim=dim)
        torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize(
    ("axis", "lengths_of_a", "lengths_of_b"),
    [(Axis.RANK, (4, 1), (1, 4)), (Axis.ROW, (4, 1), (24, 1)), (Axis.DORA, (1, 17), (1, 4))],
)
def test_each_axis_has_the_lengths_it_should(axis, lengths_of_a, lengths_of_b):
    assert polar(A, axis_of_a(axis)).lengths.shape == lengths_of_a
    assert polar(B, axis_of_b(axis)).lengths.shape == lengths_of_b


def test_with_the_rank_axis_only_the_products_of_lengths_count():
    a, b = polar(A, axis_of_a(Axis.RANK)), polar(B, axis_of_b(Axis.RANK))
    c = torch.tensor([2.0, 0.5, 3.0, 7.0]).double()
    longer = (b.lengths / c) * b.directions @ (c[:, None] * a.lengths * a.directions)
    torch.testing.assert_close(longer, B @ A)


@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-9])
def test_what_is_shorter_than_rounding_has_no_direction(size):
    matrix = A.clone()
    matrix[2] = size * matrix[2] / matrix[2].norm()
    found = polar(matrix, 1)
    assert not found.directions[2].any()
    assert bool(torch.isfinite(found.matrix()).all())
    torch.testing.assert_close(found.matrix(), matrix, rtol=1e-15, atol=1e-8)
