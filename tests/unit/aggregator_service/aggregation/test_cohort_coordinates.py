"""What a certificate asks of a cohort, as matrices between its blocks."""

from __future__ import annotations

import torch

from aggregator_service.aggregation.cohort_coordinates import Coordinates

W, RANK = (0.2, 0.3, 0.5), 4


def of(*more, ranks=(RANK,) * 3):
    return Coordinates(W, ranks, more, torch.device("cpu"))


def blocks(matrix, count=4):
    """The number on the diagonal of every block, count x count."""
    dense = matrix.to_dense().reshape(count, RANK, count, RANK)
    diagonal = dense.diagonal(dim1=1, dim2=3)
    assert torch.equal(diagonal[..., :1].expand_as(diagonal), diagonal)
    return diagonal[..., 0]


def test_what_the_mean_loses_has_nothing_at_the_origin():
    # w w^T - W with w = (1, w_1, .., w_U): row and column 0 are no rounded zeros, but no entries.
    lost = of().lost_by_the_mean
    assert int(lost.indices().min()) >= RANK
    w_N = torch.tensor([1.0, *W], dtype=torch.float64)
    ideal = blocks(of().ideal)
    expected = ideal - torch.outer(w_N, w_N)
    torch.testing.assert_close(blocks(lost), expected, rtol=0, atol=1e-15)
    assert not blocks(lost)[0].any()
    assert not blocks(lost)[:, 0].any()


def test_the_ideal_has_the_weights_beside_the_origin_and_on_the_diagonal():
    expected = torch.diag(torch.tensor([1.0, *W], dtype=torch.float64))
    expected[0, 1:] = expected[1:, 0] = torch.tensor(W, dtype=torch.float64)
    torch.testing.assert_close(blocks(of().ideal), expected, rtol=0, atol=0)


def test_the_change_has_no_entry_at_the_origin_where_all_began_from_all_of_it():
    assert blocks(of().change)[0, 0] == 0
    pairs = of().change.indices()
    assert not bool(((pairs < RANK).all(dim=0)).any())
