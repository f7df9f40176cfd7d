from __future__ import annotations

import pytest
import torch
from support.plugin_rounds import HEAD, A, B, random_tensors, seen

from fedlora.errors import FedLoraError, Reason
from fedlora.plugins.fedprox import FedProx
from fedlora.plugins.proximal import Space


def begun(seed: int = 0, moved: float = 0.5):
    given = random_tensors(seed)
    step = random_tensors(seed + 1)
    trained = {n: (t + moved * step[n]).requires_grad_() for n, t in given.items()}
    return trained, given


def test_the_penalty_is_half_mu_times_the_squared_distance():
    trained, given = begun()
    hooks = FedProx(mu=0.3).local(seen(trained, given))
    distance = sum(float((trained[n].detach() - t).square().sum()) for n, t in given.items())
    assert float(hooks.penalty().detach()) == pytest.approx(0.15 * distance, rel=1e-12)
    hooks.penalty().backward()
    for name, tensor in trained.items():
        assert torch.allclose(tensor.grad, 0.3 * (tensor - given[name]), rtol=1e-12)


@pytest.mark.parametrize("space", Space)
def test_where_the_round_began_the_gradient_is_none(space):
    trained, given = begun(moved=0.0)
    FedProx(mu=5.0, space=space).local(seen(trained, given)).penalty().backward()
    assert all(float(t.grad.abs().max()) == pytest.approx(0, abs=1e-13) for t in trained.values())


def test_the_distance_of_products_and_its_gradient_are_those_of_the_dense_matrices():
    trained, given = begun()
    FedProx(mu=0.7, space=Space.PRODUCT).local(seen(trained, given)).penalty().backward()
    found = {n: t.grad.clone() for n, t in trained.items()}
    for tensor in trained.values():
        tensor.grad = None
    dense = 2.0 * (trained[B] @ trained[A] - given[B] @ given[A])
    head = trained[HEAD] - given[HEAD]
    (0.35 * (dense.square().sum() + head.square().sum())).backward()
    for name, tensor in trained.items():
        assert torch.allclose(found[name], tensor.grad, rtol=1e-12, atol=1e-12)


def test_no_change_of_coordinates_moves_the_distance_of_products():
    trained, given = begun()
    turn = torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    turned = {A: turn @ given[A], B: given[B] @ torch.linalg.inv(turn), HEAD: given[HEAD]}
    hooks = [FedProx(space=Space.PRODUCT).local(seen(trained, g)) for g in (given, turned)]
    one, other = (float(h.penalty().detach()) for h in hooks)
    assert one == pytest.approx(other, rel=1e-10)


def test_without_strength_there_is_no_penalty():
    assert FedProx(mu=0.0).local(seen(*begun())).penalty is None


@pytest.mark.parametrize("mu", [-1.0, float("nan"), float("inf")])
def test_a_strength_that_is_none_is_refused(mu):
    with pytest.raises(FedLoraError, match=r"plugins\.fedprox\.mu") as caught:
        FedProx(mu=mu)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
