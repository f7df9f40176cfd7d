"""FedAWA's weights: the step is Adam's on the objective as it is written, on dense vectors."""

from __future__ import annotations

import pytest
import torch
from support.builders import D, K, normal, rotated_copies, start, weights
from support.reference import EPS
from support.views import facts_view, geometry_view, permuted

from aggregator_service.aggregation.geometry import cohort_geometry
from aggregator_service.aggregation.state_file import WEIGHTING, StateReader, StateWriter
from aggregator_service.aggregation.weighting.base import WeightingView
from aggregator_service.aggregation.weighting.fedawa import FedAWA, FirstWeights
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError, Reason

EXAMPLES = [1, 2, 3, 4]


def cohort(count, seed=0, drift=0.3):
    # As clients of different ranks are given: not quite the same.
    given = [normal(seed, D, K) + 0.2 * u * normal(seed + 30 + u, D, K) for u in range(count)]
    return [g + drift * normal(seed + 10 + u, D, K) for u, g in enumerate(given)], given


def objective(logits_U, products, given):
    """Dense, as the paper has it."""
    w = logits_U.softmax(0)
    steps = [p - g for p, g in zip(products, given, strict=True)]
    mean = sum(w[u] * step for u, step in enumerate(steps))
    total = 0.0
    for u, (p, g) in enumerate(zip(products, given, strict=True)):
        cosine = torch.nn.functional.cosine_similarity(p.flatten(), g.flatten(), dim=0)
        total = total + w[u] * (1 - cosine) + w[u] * (steps[u] - mean).norm()
    return total


def adam(logits_U, products, given, *, rate):
    """One step of a fresh torch.optim.Adam with the published betas."""
    logits = logits_U.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=rate, betas=(0.5, 0.999))
    objective(logits, products, given).backward()
    optimizer.step()
    return logits.detach()


def logits_of(state, count):
    return torch.stack([state[f"logit.w{u}"] for u in range(count)])


@pytest.mark.parametrize("count", [2, 4, 7])
@pytest.mark.parametrize("rate", [1e-3, 0.5])
def test_ten_rounds_are_adam_on_the_dense_objective(count, rate):
    examples = list(range(1, count + 1))
    expected = torch.tensor(examples).double() / sum(examples)
    rule, state = FedAWA(learning_rate=rate), {}
    for round in range(10):
        products, given = cohort(count, seed=100 * round, drift=0.1 * (1 + round))
        found = rule.weigh(geometry_view(products, given, examples=examples, state=state))
        # The weights of a round are those before its step. A logit's error is that of its gradient
        # over |gradient|: eps * D K * condition, condition < 1e4 here.
        torch.testing.assert_close(found.values_U, expected.softmax(0), rtol=0, atol=rate * 1e-8)
        expected = adam(expected, products, given, rate=rate)
        state = found.state
    torch.testing.assert_close(logits_of(state, count), expected, rtol=0, atol=rate * 1e-8)


def test_a_step_worked_by_hand():
    # On a line at 0, 0, 3 from starts of 0, which have no direction: no cosine. w = 1/3 each, the
    # mean is 1 and distances are 1, 1, 2. dL/dw is 1 - 1/3 and 2 + 2/3: the near ones gain. At 0, 3
    # alone the objective is 6 w_0 w_1, which has no slope at 1/2.
    given = [torch.zeros(1).double()] * 3
    products = [torch.tensor([x]).double() for x in (0.0, 0.0, 3.0)]
    view = geometry_view(products, given)
    found = FedAWA(learning_rate=0.1)
    moved = logits_of(found.weigh(view).state, 3) - 1 / 3
    torch.testing.assert_close(moved, weights(0.1, 0.1, -0.1), rtol=1e-6, atol=0)
    two = geometry_view(products[1:], given[1:])
    still = logits_of(found.weigh(two).state, 2)
    torch.testing.assert_close(still, weights(0.5, 0.5), rtol=0, atol=1e-8)


def test_the_first_weights_are_the_softmax_of_the_data_fractions():
    # exp(.1), .. exp(.4) over their sum: far from .1, .2, .3, .4.
    products, given = cohort(4)
    found = FedAWA().weigh(geometry_view(products, given, examples=EXAMPLES)).values_U
    torch.testing.assert_close(found, weights(0.2138, 0.2363, 0.2612, 0.2887), rtol=0, atol=5e-5)


def test_first_weights_can_be_the_data_weights():
    products, given = cohort(4)
    rule = FedAWA(first_weights=FirstWeights.DATA)
    found = rule.weigh(geometry_view(products, given, examples=EXAMPLES)).values_U
    torch.testing.assert_close(found, weights(0.1, 0.2, 0.3, 0.4), rtol=10 * EPS, atol=0)


def test_data_logits_are_comparable_between_cohorts_of_different_size():
    products, given = cohort(3)
    rule = FedAWA(first_weights=FirstWeights.DATA, learning_rate=0.0)
    first = rule.weigh(geometry_view(products[:2], given[:2], examples=[1, 2]))
    later = rule.weigh(geometry_view(products, given, examples=[1, 2, 7], state=first.state))
    torch.testing.assert_close(later.values_U, weights(0.1, 0.2, 0.7), rtol=10 * EPS, atol=0)


def test_a_rate_of_0_keeps_the_first_weights():
    rule, state = FedAWA(learning_rate=0.0), {}
    first = weights(0.1, 0.2, 0.3, 0.4).softmax(0)
    for round in range(3):
        products, given = cohort(4, seed=round)
        found = rule.weigh(geometry_view(products, given, examples=EXAMPLES, state=state))
        torch.testing.assert_close(found.values_U, first, rtol=4 * EPS, atol=0)
        state = found.state


@pytest.mark.parametrize("seed", range(5))
def test_clients_that_have_learnt_the_same_keep_their_weights_in_whatever_basis(seed):
    # Equal but for rounding, of which a full step of Adam would make something.
    given = start(seed=seed)
    sent = rotated_copies(4, start(seed=seed + 10))
    first = weights(0.1, 0.2, 0.3, 0.4).softmax(0)
    state = {}
    for _ in range(3):
        view = WeightingView(
            updates=facts_view(EXAMPLES).updates,
            geometry=lambda: cohort_geometry([(sent, [given] * 4)]),
            state=state,
        )
        found = FedAWA(learning_rate=1.0).weigh(view)
        torch.testing.assert_close(found.values_U, first, rtol=0, atol=1e-6)
        state = found.state


def test_one_client_has_all_the_weight_in_every_round():
    products, given = cohort(1)
    rule, state = FedAWA(learning_rate=1.0), {}
    for _ in range(3):
        found = rule.weigh(geometry_view(products, given, state=state))
        assert found.values_U.tolist() == [1.0]
        state = found.state


def test_a_logit_moves_by_the_rate_at_most():
    products, given = cohort(5)
    found = FedAWA(learning_rate=0.02).weigh(geometry_view(products, given))
    moved = logits_of(found.state, 5) - 0.2
    assert float(moved.abs().max()) <= 0.02
    assert float(moved.abs().min()) > 0.0199


def test_a_sign_flipped_outlier_loses_its_weight():
    products, given = cohort(4)
    products[3] = given[3] - 20 * (products[3] - given[3])
    rule, state = FedAWA(learning_rate=0.05), {}
    for _ in range(300):
        found = rule.weigh(geometry_view(products, given, state=state))
        state = found.state
    assert float(found.values_U[3]) < 1e-3
    # As the module says: L is least where one client has all.
    assert float(found.values_U.max()) > 0.9


def test_who_is_absent_keeps_its_logit():
    products, given = cohort(3)
    rule = FedAWA(learning_rate=0.1)
    first = rule.weigh(geometry_view(products, given, examples=[1, 2, 3]))
    second = rule.weigh(geometry_view(products[:2], given[:2], examples=[1, 2], state=first.state))
    assert torch.equal(second.state["logit.w2"], first.state["logit.w2"])
    kept = logits_of(first.state, 2).softmax(0)
    torch.testing.assert_close(second.values_U, kept, rtol=4 * EPS, atol=0)


def test_who_comes_later_begins_at_its_share_of_that_cohort():
    products, given = cohort(3)
    first, second = weights(0.7, -0.2)
    state = {"logit.w0": first, "logit.w1": second}
    found = FedAWA().weigh(geometry_view(products, given, examples=[1, 1, 2], state=state))
    expected = weights(0.7, -0.2, 0.5).softmax(0)
    torch.testing.assert_close(found.values_U, expected, rtol=4 * EPS, atol=0)


def test_without_a_known_start_the_products_are_what_is_compared():
    products, _ = cohort(4)
    zeros = [torch.zeros_like(p) for p in products]
    found, expected = (
        FedAWA().weigh(geometry_view(products, given)).state for given in (None, zeros)
    )
    assert logits_of(found, 4).tolist() == logits_of(expected, 4).tolist()
    assert len(set(logits_of(found, 4).tolist())) > 1


def test_the_step_does_not_care_how_products_are_factored():
    given = LoraFactors(normal(1, 4, K), normal(2, D, 4))
    sent = [
        LoraFactors(given.a_RK + normal(3 + u, 4, K), given.b_DR + normal(9 + u, D, 4))
        for u in range(3)
    ]
    dense = geometry_view([f.b_DR @ f.a_RK for f in sent], [given.b_DR @ given.a_RK] * 3)
    turned = [LoraFactors(f.a_RK * 4, f.b_DR / 4) for f in sent]
    expected = logits_of(FedAWA(learning_rate=1.0).weigh(dense).state, 3)
    for members in (sent, turned):
        view = WeightingView(
            updates=facts_view([1, 1, 1]).updates,
            geometry=lambda members=members: cohort_geometry([(members, [given] * 3)]),
        )
        found = logits_of(FedAWA(learning_rate=1.0).weigh(view).state, 3)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_weights_and_logits_follow_their_clients():
    products, given = cohort(4)
    state = {f"logit.w{u}": torch.tensor(0.1 * u).double() for u in range(4)}
    seen, order = geometry_view(products, given, state=state), [2, 0, 3, 1]
    found, other = FedAWA().weigh(seen), FedAWA().weigh(permuted(seen, order))
    torch.testing.assert_close(
        other.values_U, found.values_U[torch.tensor(order)], rtol=4 * EPS, atol=0
    )
    torch.testing.assert_close(
        logits_of(other.state, 4), logits_of(found.state, 4), rtol=0, atol=1e-12
    )


def test_a_restarted_server_goes_on_where_it_was(tmp_path):
    products, given = cohort(2)
    workers = ["site|a", "b/ü"]
    view = geometry_view(products, given, examples=[1, 3], workers=workers)
    first = FedAWA(learning_rate=0.5).weigh(view)
    with StateWriter(tmp_path / "state") as writer:
        writer.put(WEIGHTING, first.state)
    with StateReader(tmp_path / "state") as reader:
        state = reader.of(WEIGHTING)
    assert {k: v.item() for k, v in state.items()} == {k: v.item() for k, v in first.state.items()}
    seconds = [
        FedAWA().weigh(geometry_view(products, given, workers=workers, state=s)).values_U
        for s in (state, first.state)
    ]
    assert torch.equal(*seconds)


@pytest.mark.parametrize("rate", [-1e-3, float("nan"), float("inf")])
def test_a_bad_rate_is_refused(rate):
    with pytest.raises(FedLoraError, match=f"finite learning_rate >= 0, got {rate}") as caught:
        FedAWA(learning_rate=rate)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
