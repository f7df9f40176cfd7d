"""FedHL: increments on a full-rank delta, beside dense deltas."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from support.builders import D, K, drifted, normal, start, unrelated, weights
from support.recipes import combine
from support.reference import EPS, best_of_rank, ideal, relative_error, tail_norm
from torch import Tensor

from aggregator_service.aggregation.base import Publication
from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fedhl import FedHL
from aggregator_service.aggregation.methods.flexlora import FlexLoRA
from aggregator_service.aggregation.module_cohort import GlobalModule, ModuleCohort
from aggregator_service.aggregation.weighting.base import UpdateFacts, WeightingView
from aggregator_service.aggregation.weighting.truncation_error import Form, TruncationError
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.method import Gauge


def first_slice(factors: LoraFactors, rank: int) -> LoraFactors:
    """What a client of that rank is given of a published adapter."""
    return LoraFactors(factors.a_RK[:rank], factors.b_DR[:, :rank])


def delta_of(state) -> Tensor:
    return state["delta_b"] @ state["delta_a"]


@dataclass
class Run:
    """One module over the rounds, with a dense delta that is simply added up beside it."""

    ranks: list[int]
    examples: list[float]
    method: FedHL = field(default_factory=FedHL)
    publication: Publication = field(default_factory=lambda: Publication(dtype=torch.float64))
    gauge: Gauge = Gauge.OWN
    d: int = D
    k: int = K

    def __post_init__(self):
        rank = max(self.ranks)
        # PEFT's start: A random, B zero.
        self.version = LoraFactors(normal(5, rank, self.k) / 4, torch.zeros(self.d, rank).double())
        self.state: dict[str, Tensor] = {}
        self.dense = torch.zeros(self.d, self.k, dtype=torch.float64)
        self.weights_U = weights(*self.examples)
        self.round = 0

    def sent(self) -> list[LoraFactors]:
        return [first_slice(self.version, r) for r in self.ranks]

    def weigh(self) -> Tensor:
        facts = zip(self.ranks, self.examples, strict=True)
        return self.method.weighting.weigh(
            WeightingView(
                updates=tuple(
                    UpdateFacts(worker=f"w{u}", num_examples=n, rank=r)
                    for u, (r, n) in enumerate(facts)
                ),
                geometry=lambda: pytest.fail("the rule looks at no tensor"),
                module_states=lambda name: {"m": self.state[name]} if self.state else {},
            )
        ).values_U

    def step(self, train):
        """One round; `train` makes an update of (client's number, what it was given)."""
        self.round += 1
        sent, self.weights_U = self.sent(), self.weigh()
        members = [train(u, given) for u, given in enumerate(sent)]
        result = combine(
            compose(self.method, gauge=self.gauge),
            members,
            self.weights_U,
            rank=max(self.ranks),
            seed=self.round,
            publication=self.publication,
            sent=sent,
            start=GlobalModule(factors=self.version),
            state=self.state,
            round=self.round,
        )
        self.dense += ideal(members, self.weights_U) - ideal(sent, self.weights_U)
        self.version, self.state = self.publication.read_back(result.factors), result.state
        return result


def jump(scale=0.3):
    """Training that moves both factors at random, anew for every call."""
    calls = iter(range(10**6))

    def train(u, given):
        seed = 9000 + 17 * next(calls)
        return LoraFactors(
            given.a_RK + scale * normal(seed, *given.a_RK.shape),
            given.b_DR + scale * normal(seed + 1, *given.b_DR.shape),
        )

    return train


def test_one_number_worked_by_hand():
    # D = 5, given 1 * 2 = 2 and 1 * 3 = 3, sent 2 * 2 = 4 and 1 * 7 = 7, p = 3/4 and 1/4:
    # D' = 5 + 3/4 * 2 + 1/4 * 4 = 7.5, balanced as sqrt(7.5) each.
    def scalar(a, b):
        return LoraFactors(torch.tensor([[a]]).double(), torch.tensor([[b]]).double())

    given = [scalar(1, 2), scalar(1, 3)]
    five = {"delta_a": torch.ones(1, 1).double(), "delta_b": 5 * torch.ones(1, 1).double()}
    found = combine(
        FedHL(),
        [scalar(2, 2), scalar(1, 7)],
        weights(3, 1),
        sent=given,
        state=five,
        start=GlobalModule(factors=scalar(1, 5)),
    )
    assert float(delta_of(found.state)) == pytest.approx(7.5, rel=1e-14)
    assert float(found.state["values"]) == pytest.approx(7.5, rel=1e-14)
    assert float(found.factors.a_RK.abs()) == pytest.approx(7.5**0.5, rel=1e-14)


@pytest.mark.parametrize("shape", [(24, 17), (11, 17), (40, 9)])
@pytest.mark.parametrize("ranks", [[4, 4, 4], [1, 8, 3], [2, 20]])
def test_the_delta_as_factors_is_the_dense_delta(ranks, shape):
    run, train = Run(ranks, [3.0, 1.0, 2.0][: len(ranks)], d=shape[0], k=shape[1]), jump()
    for t in range(6):
        result = run.step(train)
        assert relative_error(delta_of(run.state), run.dense) < 1000 * EPS * (t + 1)
        assert run.state["delta_a"].shape[0] <= min(shape)
        expected = best_of_rank(run.dense, max(ranks))
        assert relative_error(result.factors.delta_weight(), expected) < 1e5 * EPS


def test_state_is_balanced_sorted_and_float64():
    run = Run([2, 6, 3], [1.0, 2.0, 3.0])
    for _ in range(2):
        run.step(jump())
    a, b, values = (run.state[name] for name in ("delta_a", "delta_b", "values"))
    assert {a.dtype, b.dtype, values.dtype} == {torch.float64}
    dense = torch.linalg.svdvals(run.dense)[: len(values)]
    torch.testing.assert_close(values, dense, rtol=0, atol=1000 * EPS * float(dense[0]))
    for gram in (a @ a.T, b.T @ b):
        torch.testing.assert_close(gram, values.diag(), rtol=0, atol=1000 * EPS * float(values[0]))


def fixed_point(method, ranks, p):
    """A delta of full rank, its truncations sent, and handed back as they came."""
    dense = normal(1, D, K)
    u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    whole = LoraFactors(s.sqrt()[:, None] * vh, u * s.sqrt())
    sent = [first_slice(whole, r) for r in ranks]
    state = {"delta_a": whole.a_RK, "delta_b": whole.b_DR, "values": s}
    start_of = GlobalModule(factors=first_slice(whole, max(ranks)))
    return dense, combine(method, sent, p, sent=sent, state=state, start=start_of)


@pytest.mark.parametrize("p", [(1, 1, 1), (8, 1, 1), (0.001, 0.1, 1)])
def test_clients_that_hand_back_what_they_got_leave_the_delta_as_it_was(p):
    dense, found = fixed_point(FedHL(), [2, 4, 9], weights(*p))
    assert relative_error(delta_of(found.state), dense) < 1000 * EPS


def test_averaging_truncated_products_loses_what_was_truncated():
    # The reason for increments: what FlexLoRA makes of the same cohort.
    ranks, p = [2, 4, 9], weights(1, 1, 1)
    dense, found = fixed_point(FlexLoRA(), ranks, p)
    lost = dense - sum(best_of_rank(dense, r) for r in ranks) / 3
    assert float(lost.norm() / dense.norm()) > 0.4
    left = float((found.factors.delta_weight() - dense).norm())
    assert left >= float(lost.norm()) * (1 - 1e-12)


def test_at_equal_full_ranks_and_data_weights_it_averages_products():
    run, train = Run([K, K, K], [3.0, 1.0, 2.0], method=FedHL(form=Form.DATA)), jump()
    for _ in range(3):
        members = [train(u, given) for u, given in enumerate(run.sent())]
        result = run.step(lambda u, _, sent_back=members: sent_back[u])
        target = ideal(members, weights(3, 1, 2))
        assert relative_error(result.factors.delta_weight(), target) < 1e5 * EPS


def test_without_a_known_start_the_first_round_averages_products():
    members, w = unrelated([3, 2, 4]), weights(1, 2, 3)
    found = combine(FedHL(), members, w, rank=9)
    assert relative_error(found.factors.delta_weight(), ideal(members, w)) < 1000 * EPS
    assert relative_error(delta_of(found.state), ideal(members, w)) < 1000 * EPS


def test_a_run_that_begins_from_an_adapter_begins_with_its_product():
    origin = start(r=6)
    sent = [first_slice(origin, r) for r in (2, 6)]
    members = [jump()(u, given) for u, given in enumerate(sent)]
    w = weights(1, 3)
    found = combine(FedHL(), members, w, sent=sent, start=GlobalModule(factors=origin))
    dense = origin.delta_weight() + ideal(members, w) - ideal(sent, w)
    assert relative_error(delta_of(found.state), dense) < 1000 * EPS


def test_what_is_subtracted_is_what_was_sent_rounding_included():
    # Clients that do not move, on a bfloat16 wire, whose rounding is 1e-3 of every factor: the
    # delta neither learns the rounding nor drifts.
    run = Run([2, 4, 6], [1.0, 1.0, 1.0], publication=Publication(dtype=torch.bfloat16))
    run.step(jump())
    before = delta_of(run.state)
    for _ in range(5):
        run.step(lambda u, given: given)
    assert relative_error(delta_of(run.state), before) < 1e4 * EPS
    rounded = run.version.delta_weight() - best_of_rank(before, 6)
    assert float(rounded.norm() / before.norm()) > 1e-4


def test_the_first_download_can_learn_and_so_can_spare_components():
    # B has a gradient where A's rows are not zero: G A^T for the loss <G, B A>.
    still = combine(
        FedHL(),
        [first_slice(Run([4], [1.0]).version, 4)],
        weights(1),
        sent=[first_slice(Run([4], [1.0]).version, 4)],
        rank=6,
    )
    assert not delta_of(still.state).any()
    gradient = normal(3, D, K) @ still.factors.a_RK.T
    assert bool((gradient.norm(dim=0) > 0).all())
    members, w = unrelated([1, 2]), weights(1, 1)
    found = combine(FedHL(), members, w, rank=8).factors
    assert relative_error(found.delta_weight(), ideal(members, w)) < 1000 * EPS
    assert bool((found.a_RK.norm(dim=1) > 0.1).all())
    assert not found.b_DR[:, 3:].any()


def test_a_capped_delta_is_the_best_of_its_rank_and_says_what_it_lost():
    members, w = unrelated([5, 6]), weights(1, 2)
    found = combine(FedHL(max_rank=7), members, w, rank=4)
    target = ideal(members, w)
    assert found.state["delta_a"].shape == (7, K)
    assert relative_error(delta_of(found.state), best_of_rank(target, 7)) < 1e4 * EPS
    lost = tail_norm(target, 7) / float(target.norm())
    assert found.measurements["delta_truncation_error"] == pytest.approx(lost, rel=1e-10)
    assert combine(FedHL(), members, w, rank=4).measurements["delta_truncation_error"] == 0


def test_a_rank_deficient_delta_is_kept_at_its_own_rank():
    half = start(r=2)
    members = [LoraFactors(torch.cat([half.a_RK] * 2), torch.cat([half.b_DR] * 2, dim=1))] * 3
    found = combine(FedHL(), members, weights(1, 1, 1), rank=4)
    assert found.measurements["delta_rank"] == 2
    assert found.state["values"].shape == (2,)
    assert relative_error(delta_of(found.state), 2 * half.delta_weight()) < 1000 * EPS


def test_the_order_of_clients_does_not_matter():
    ranks, p = [2, 4, 9], weights(3, 1, 2)
    origin = start(r=9)
    sent = [first_slice(origin, r) for r in ranks]
    members = [
        LoraFactors(g.a_RK + normal(r, *g.a_RK.shape), g.b_DR + normal(r + 50, *g.b_DR.shape))
        for r, g in zip(ranks, sent, strict=True)
    ]
    at = GlobalModule(factors=origin)
    one = combine(FedHL(), members, p, sent=sent, start=at)
    other = combine(FedHL(), members[::-1], p.flip(0), sent=sent[::-1], start=at)
    assert relative_error(delta_of(other.state), delta_of(one.state)) < 1000 * EPS


def test_a_gauge_of_the_factors_changes_nothing():
    origin, at = start(), GlobalModule(factors=start())
    members, sent = drifted(2), [origin, origin]
    turned = [
        LoraFactors(torch.linalg.solve(g, f.a_RK), f.b_DR @ g)
        for f, g in ((f, normal(80 + u, 4, 4)) for u, f in enumerate(members))
    ]
    one, other = (
        combine(FedHL(), m, weights(1, 2), sent=sent, start=at) for m in (members, turned)
    )
    assert relative_error(delta_of(other.state), delta_of(one.state)) < 1e5 * EPS


@pytest.mark.parametrize("gauge", ["balanced", "orthonormal_a", "orthonormal_b"])
def test_the_delta_is_the_same_in_every_gauge_that_it_may_be_published_in(gauge):
    # What is subtracted is what was sent, and what is sent are its strongest components. Workers
    # move a product the same way whatever factors they hold: B A becomes (I + G) B A.
    def tilt(u, given):
        return LoraFactors(given.a_RK, given.b_DR + 0.1 * normal(60 + u, D, D) @ given.b_DR)

    members = {}
    for chosen in ("own", gauge):
        run = Run([2, 6, 3], [1.0, 2.0, 3.0], gauge=Gauge(chosen))
        run.step(jump())
        for _ in range(3):
            run.step(tilt)
        assert relative_error(delta_of(run.state), run.dense) < 1e4 * EPS
        members[chosen] = run
    own, other = members["own"], members[gauge]
    assert relative_error(other.dense, own.dense) < 1e5 * EPS
    torch.testing.assert_close(other.weights_U, own.weights_U)


def test_the_target_of_the_certificate_is_the_next_delta():
    run, train = Run([2, 6], [1.0, 3.0]), jump()
    run.step(train)
    sent = run.sent()
    members = [train(u, g) for u, g in enumerate(sent)]
    cohort = ModuleCohort.of(
        members, weights(1, 3), sent=sent, start=GlobalModule(factors=run.version), state=run.state
    )
    dense = run.dense + ideal(members, weights(1, 3)) - ideal(sent, weights(1, 3))
    found = run.method.target(cohort)
    assert found.a_RK.dtype == torch.float64
    assert relative_error(found.delta_weight(), dense) < 1000 * EPS
    # It is not T: the small client's truncation is no part of it.
    assert relative_error(ideal(members, weights(1, 3)), dense) > 0.01


def test_its_weights_are_its_own():
    method = FedHL(form=Form.POWER, power=2, eps_rel=0.1, data_pull=3.0)
    expected = TruncationError(form=Form.POWER, power=2, eps_rel=0.1, data_pull=3.0)
    assert method.weighting == expected
    with pytest.raises(FedLoraError, match="weighs updates itself") as caught:
        compose(method, weighting=expected)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD


def test_a_state_without_the_start_of_the_round_is_refused():
    state = combine(FedHL(), drifted(2), weights(1, 1)).state
    with pytest.raises(FedLoraError, match="what the clients were given") as caught:
        combine(FedHL(), drifted(2), weights(1, 1), state=state)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    assert "leave the state out" in caught.value.hint


def test_a_changed_base_model_is_refused():
    at = GlobalModule(factors=start(), base=start(seed=8))
    with pytest.raises(FedLoraError, match="base model has been changed") as caught:
        combine(FedHL(), drifted(2), weights(1, 1), sent=[start()] * 2, start=at)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    assert "truncate or energy" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "got"),
    [({"max_rank": -1}, "max_rank >= 0"), ({"power": 0}, "got 0, 0.01 and 1.0")],
)
def test_bad_options_are_refused(options, got):
    with pytest.raises(FedLoraError, match=got) as caught:
        FedHL(**options)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
