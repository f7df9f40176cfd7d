"""Late updates against dense float64 products, written from the papers' own lines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.builders import MODULES, contribution, folded, write_update
from support.reference import best_of_rank, relative_error
from torch import Tensor

from aggregator_service.aggregation import registry
from aggregator_service.aggregation.contribution import Contribution
from aggregator_service.aggregation.driver import aggregate
from aggregator_service.aggregation.round_context import RoundContext, StoredAdapter
from aggregator_service.aggregation.run_checks import needs_one_version
from aggregator_service.aggregation.stale_updates import (
    VERSION_BEFORE,
    Discount,
    LateContribution,
    cohort_of,
)
from fedlora.adapters.names import PREFIX, Factor, Part, lora_key
from fedlora.adapters.spec import AdapterKind
from fedlora.runs.method import Gauge, MethodSpec, RuleSpec

HEAD = {"classifier.weight": (3, 7)}
SCALING = 2.0
FEDBUFF = Discount()
FEDASYNC = Discount(mixing=0.6, rebases=False)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Three versions of the global adapter and three workers, each near the one it began from."""
    made: dict[str, Path] = {}
    origin = None
    for v in range(3):
        path = tmp_path / f"v{v}.safetensors"
        made[f"v{v}"] = origin = write_update(path, seed=v + 1, origin=origin, saved=HEAD)
    for u in range(3):
        path = tmp_path / f"w-{u}.safetensors"
        made[f"w-{u}"] = write_update(path, seed=20 + u, origin=made[f"v{2 - u}"], saved=HEAD)
    return made


def late(files: dict[str, Path], u: int, staleness: int, weight: float = 1.0) -> LateContribution:
    """Worker u's update; `staleness` versions before the newest, v2."""
    return LateContribution(
        contribution=contribution(files[f"w-{u}"], weight=weight, scaling=SCALING),
        staleness=staleness,
        base=StoredAdapter(path=files[f"v{2 - staleness}"], scaling=SCALING),
    )


def product(path: Path, module: str) -> Tensor:
    return folded(path, module, SCALING).delta_weight()


def freeze_a(files: dict[str, Path]) -> None:
    """As where nobody trains A: it is the same in all versions, and in no update."""
    first = load_file(files["v0"])
    for name, path in files.items():
        tensors = load_file(path)
        for key in [k for k in tensors if ".lora_A." in k]:
            tensors[key] = first[key]
            if name.startswith("w"):
                del tensors[key]
        save_file(tensors, path, metadata={"format": "pt"})


def combined(
    tmp_path: Path,
    files: dict[str, Path],
    updates: Sequence[LateContribution],
    discount: Discount,
    method: str,
    rank: int,
    gauge: Gauge = Gauge.OWN,
) -> tuple[Path, list[Contribution]]:
    """The next version, served with scale 1."""
    recipe = registry.create_recipe(MethodSpec(name=method, gauge=gauge))
    before = StoredAdapter(path=files["v2"], scaling=SCALING)
    names = iter(tmp_path / f"rebased-{i}" for i in range(9))
    with cohort_of(
        updates,
        discount=discount,
        before=before,
        in_products=recipe.properties.gauge_free,
        temporary=lambda: next(names),
    ) as members:
        aggregate(
            members,
            recipe,
            output=tmp_path / f"out-{gauge}",
            context=RoundContext(start=before),
            rank=rank,
        )
    assert not list(tmp_path.glob("rebased-*")), "nothing is left behind"
    return tmp_path / f"out-{gauge}", members


def published(path: Path, module: str) -> Tensor:
    return product(path, module) / SCALING


@pytest.mark.parametrize("method", ["fedit", "flora_na", "optimal", "flexlora"])
def test_with_nobody_late_a_buffer_is_the_plain_mean_bit_for_bit(tmp_path, files, method):
    updates = [late(files, u, 0, weight=1.0 + u) for u in range(3)]
    plain = tmp_path / "plain"
    aggregate(
        [u.contribution for u in updates],
        registry.create_recipe(MethodSpec(name=method)),
        output=plain,
        context=RoundContext(start=StoredAdapter(path=files["v2"], scaling=SCALING)),
        rank=4,
    )
    out, members = combined(tmp_path, files, updates, FEDBUFF, method, 4)
    assert [m.worker for m in members] == ["w-0", "w-1", "w-2"]
    assert out.read_bytes() == plain.read_bytes()


def test_a_late_update_counts_as_its_change_with_less_weight(tmp_path, files):
    """FedBuff, algorithm 1, on products: P + (1/N) sum_u n_u s(t_u) (P_u - P_base(u))."""
    n, staleness = (1.0, 2.0, 3.0), (0, 1, 2)
    updates = [late(files, u, t, w) for u, (t, w) in enumerate(zip(staleness, n, strict=True))]
    # Rank enough for all of them: nothing is cut off, so only rounding to float32 is left.
    out, members = combined(tmp_path, files, updates, FEDBUFF, "optimal", 11)
    for module in MODULES:
        now = product(files["v2"], module)
        expected = now.clone()
        for u, (t, w) in enumerate(zip(staleness, n, strict=True)):
            change = product(files[f"w-{u}"], module) - product(files[f"v{2 - t}"], module)
            expected += w / 6 * (1 + t) ** -0.5 * change
        assert relative_error(published(out, module), best_of_rank(expected, 11)) < 1e-6
    head = PREFIX + "classifier.weight"
    heads = {name: load_file(path)[head].double() for name, path in files.items()}
    expected = heads["v2"] + sum(
        w / 6 * (1 + t) ** -0.5 * (heads[f"w-{u}"] - heads[f"v{2 - t}"])
        for u, (t, w) in enumerate(zip(staleness, n, strict=True))
    )
    torch.testing.assert_close(load_file(out)[head].double(), expected, rtol=1e-6, atol=1e-7)
    shares = {m.worker: m.weight / 6 for m in members}
    assert shares == pytest.approx(
        {"w-0": 1 / 6, "w-1": 2 / 6 / 2**0.5, "w-2": 3 / 6 / 3**0.5, VERSION_BEFORE: 0.3089559},
        abs=1e-6,
    ), "worked by hand: 1 - 1/6 - 0.2357023 - 0.2886751 = 0.3089559 for the version before"


def test_where_components_are_kept_the_factors_change_by_what_the_worker_changed(tmp_path, files):
    """FedBuff on the parameters themselves: A + s (A_u - A_base), and B likewise."""
    out, _ = combined(tmp_path, files, [late(files, 2, 2)], FEDBUFF, "fedit", 4)
    share = 3**-0.5
    tensors = {name: load_file(path) for name, path in files.items()}
    result = load_file(out)
    for module in MODULES:
        for factor, scale in ((Factor.LORA_A, 1.0), (Factor.LORA_B, SCALING)):
            key = lora_key(module, factor)
            now, sent, base = (tensors[n][key].double() for n in ("v2", "w-2", "v0"))
            expected = scale * (now + share * (sent - base))
            torch.testing.assert_close(result[key].double(), expected, rtol=1e-5, atol=1e-6)


def test_one_fresh_update_mixed_in_whole_is_the_clients_model(tmp_path, files):
    discount = Discount(mixing=1.0, rebases=False)
    out, members = combined(tmp_path, files, [late(files, 0, 0)], discount, "optimal", 4)
    assert len(members) == 1
    for module in MODULES:
        assert relative_error(published(out, module), product(files["w-0"], module)) < 1e-6


def test_fedasync_mixes_the_adapter_in_as_it_is(tmp_path, files):
    """FedAsync, algorithm 1: (1 - a) theta + a theta_u with a = alpha (1 + t)^-x."""
    out, _ = combined(tmp_path, files, [late(files, 1, 1)], FEDASYNC, "optimal", 8)
    a = 0.6 * 2**-0.5
    for module in MODULES:
        expected = (1 - a) * product(files["v2"], module) + a * product(files["w-1"], module)
        assert relative_error(published(out, module), expected) < 1e-6


def test_the_discount_is_one_for_nobody_late_and_never_rises():
    for exponent in (0.0, 0.5, 2.0):
        shares = [Discount(exponent=exponent).of(t) for t in range(20)]
        assert shares[0] == 1.0
        assert shares == sorted(shares, reverse=True)
    assert Discount(exponent=0.0).of(9) == 1.0
    assert Discount(exponent=0.5).of(3) == 0.5


def test_what_is_left_to_the_version_before_is_the_same_in_any_order(tmp_path, files):
    updates = [late(files, 0, 1), late(files, 1, 2, weight=2.0), late(files, 2, 1)]
    before = StoredAdapter(path=files["v2"], scaling=SCALING)
    weights = set()
    for order in itertools.permutations(updates):
        paths = iter(tmp_path / f"rebased-{i}" for i in range(9))
        with cohort_of(
            order, discount=FEDBUFF, before=before, in_products=False, temporary=paths.__next__
        ) as members:
            weights.add(members[-1].weight)
    assert len(weights) == 1


def test_an_update_of_no_examples_is_not_read(tmp_path, files):
    broken = tmp_path / "broken"
    broken.write_bytes(b"nothing")
    absent = LateContribution(
        contribution=contribution(broken, weight=0.0), staleness=1, base=late(files, 1, 1).base
    )
    out, _ = combined(tmp_path, files, [late(files, 0, 0), absent], FEDBUFF, "fedit", 4)
    assert out.exists()


def test_a_worker_of_lower_rank_changes_the_components_that_it_was_given(tmp_path, files):
    small = tmp_path / "small.safetensors"
    tensors = {}
    for key, tensor in load_file(files["v1"]).items():
        cut = tensor
        if ".lora_A." in key:
            cut = tensor[:2] + 1
        elif ".lora_B." in key:
            cut = tensor[:, :2]
        tensors[key] = cut.contiguous()
    save_file(tensors, small, metadata={"format": "pt"})
    update = LateContribution(
        contribution=contribution(small, scaling=SCALING, worker="w-9"),
        staleness=1,
        base=StoredAdapter(path=files["v1"], scaling=SCALING),
    )
    with cohort_of(
        [update],
        discount=FEDBUFF,
        before=StoredAdapter(path=files["v2"], scaling=SCALING),
        in_products=False,
        temporary=lambda: tmp_path / "rebased",
    ) as members:
        rebased, now = load_file(members[0].path), load_file(files["v2"])
    for module in MODULES:
        # It has raised A by 1 in the two components that it has, and left B.
        a, b = (lora_key(module, f) for f in (Factor.LORA_A, Factor.LORA_B))
        torch.testing.assert_close(rebased[a], now[a][:2].double() + 1, rtol=0, atol=1e-6)
        torch.testing.assert_close(rebased[b], SCALING * now[b][:, :2].double())


@pytest.mark.parametrize("method", registry.METHODS)
def test_every_method_combines_late_updates_or_says_why_not(tmp_path, files, method):
    recipe = registry.create_recipe(MethodSpec(name=method))
    why = needs_one_version(recipe, AdapterKind.LORA)
    if why:
        assert why[0].islower()
        assert len(why) > 20
        return
    if Part.A not in recipe.plans()[0].trained:
        freeze_a(files)
    updates = [late(files, u, u) for u in range(3)]
    out, _ = combined(tmp_path, files, updates, FEDBUFF, method, 4)
    for module in MODULES:
        assert torch.isfinite(published(out, module)).all()


def test_methods_that_need_a_synchronous_cohort():
    refused = {
        name
        for name in registry.METHODS
        if needs_one_version(registry.create_recipe(MethodSpec(name=name)), AdapterKind.LORA)
    }
    assert {"flora", "fedsa_lora", "rolora", "fedlora_optimizer", "fed_sb", "fedawa"} <= refused
    assert not {"fedit", "flora_na", "optimal", "flexlora", "ffa_lora"} & refused
    weighted = MethodSpec(name="fedit", weighting=RuleSpec(name="update_norm"))
    assert "compare" in needs_one_version(registry.create_recipe(weighted), AdapterKind.LORA)


@pytest.mark.parametrize("name", ["fedit", "flora_na", "optimal"])
@pytest.mark.parametrize("gauge", [*Gauge])
def test_a_gauge_that_moves_components_needs_a_method_of_products(tmp_path, files, name, gauge):
    recipe = registry.create_recipe(MethodSpec(name=name, gauge=gauge))
    why = needs_one_version(recipe, AdapterKind.LORA)
    if name != "optimal" and not recipe.properties.keeps_basis:
        assert "combines updates by component" in why
        return
    assert not why
    updates = [late(files, u, u) for u in range(3)]
    out, _ = combined(tmp_path, files, updates, FEDBUFF, name, 4, gauge)
    own, _ = combined(tmp_path, files, updates, FEDBUFF, name, 4)
    for module in MODULES:
        assert relative_error(published(out, module), published(own, module)) < 1e-5
