from __future__ import annotations

import pytest
import torch

from client_worker.components import chosen_components
from fedlora.adapters.names import Part, part_key
from fedlora.adapters.shape import AdapterShape
from fedlora.adapters.spec import AdaptedModule, AdapterKind, AdapterLayout
from fedlora.runs.plan import RoundPlan, Selection
from fedlora.tensors.manifest import DataType, TensorInfo

PATHS = ("one", "two")
HEAD = "base_model.model.classifier.weight"
SHAPE = AdapterShape(
    layout=AdapterLayout(
        modules=tuple(AdaptedModule(path=p, in_features=5, out_features=7) for p in PATHS),
        saved_tensors=(TensorInfo(name=HEAD, shape=(3, 7), dtype=DataType.F32),),
        base_fingerprint="f",
    ),
    kind=AdapterKind.LORA,
    rank=4,
    dtype=DataType.BF16,
)


def adapter(seed=0):
    generator = torch.Generator().manual_seed(seed)
    manifest = SHAPE.manifest(SHAPE.parts)
    return {t.name: torch.randn(t.shape, generator=generator) for t in manifest.tensors}


def sent(trained, given, *, parts=(Part.B,), selection=Selection.REST_UNCHANGED, budget=0.5):
    plan = RoundPlan(trained=parts, selection=selection, settings={"upload_budget": budget})
    update = {n: trained[n] for n in SHAPE.manifest(parts).by_name}
    return chosen_components(update, trained, given, plan=plan, shape=SHAPE)


def masks(update):
    return [update[part_key(path, Part.SELECTED)].tolist() for path in PATHS]


def test_the_components_that_moved_most_are_sent_over_all_modules():
    given = adapter()
    trained = {n: t.clone() for n, t in given.items()}
    b = part_key("one", Part.B)
    for j, move in ((0, 0.3), (2, 0.2), (3, 0.1)):
        trained[b][:, j] += move / given[part_key("one", Part.A)][j].norm()
    trained[part_key("two", Part.B)][:, 1] += 0.15 / given[part_key("two", Part.A)][1].norm()
    update = sent(trained, given, budget=3 / 8)
    assert masks(update) == [[1, 0, 1, 0], [0, 1, 0, 0]]
    assert torch.equal(update[b], trained[b][:, [0, 2]])
    assert torch.equal(update[HEAD], trained[HEAD])


def test_where_absent_components_are_zero_the_largest_are_sent():
    given = {n: torch.zeros_like(t) if ".lora_B" in n else t for n, t in adapter().items()}
    trained = dict(given)
    for path, sizes in (("one", (4.0, 1.0, 3.0, 0.0)), ("two", (0.5, 0.0, 0.0, 2.0))):
        a_norms = given[part_key(path, Part.A)].norm(dim=1)
        trained[part_key(path, Part.B)] = torch.ones(7, 4) * torch.tensor(sizes) / a_norms
    update = sent(trained, given, selection=Selection.REST_ZERO)
    assert masks(update) == [[1, 1, 1, 0], [0, 0, 0, 1]]


def test_importance_does_not_care_how_a_component_is_split_between_its_factors():
    given, trained = adapter(0), adapter(1)
    scaled = {n: t.clone() for n, t in trained.items()}
    scaled[part_key("one", Part.A)][0] *= 8
    scaled[part_key("one", Part.B)][:, 0] /= 8
    both = {"parts": (Part.A, Part.B), "budget": 0.4}
    assert masks(sent(trained, given, **both)) == masks(sent(scaled, given, **both))


def test_importance_is_the_norm_of_what_is_lost():
    given, trained = adapter(0), adapter(1)
    lost = {
        (path, j): torch.outer(
            trained[part_key(path, Part.B)][:, j], trained[part_key(path, Part.A)][j]
        )
        .sub(torch.outer(given[part_key(path, Part.B)][:, j], given[part_key(path, Part.A)][j]))
        .norm()
        for path in PATHS
        for j in range(4)
    }
    best = sorted(lost, key=lambda key: -lost[key])
    for count in range(1, 9):
        update = sent(trained, given, parts=(Part.A, Part.B), budget=count / 8)
        found = masks(update)
        chosen = {(p, j) for p, mask in zip(PATHS, found, strict=True) for j in range(4) if mask[j]}
        assert chosen == {*best[:count]}


@pytest.mark.parametrize("part", [Part.A, Part.B])
def test_a_module_without_a_chosen_component_sends_its_mask_alone(part):
    given = adapter()
    trained = {n: t + (n.startswith(part_key("two", part))) for n, t in given.items()}
    update = sent(trained, given, parts=(part,))
    assert masks(update) == [[0] * 4, [1] * 4]
    assert set(update) == {
        HEAD,
        part_key("two", part),
        *(part_key(path, Part.SELECTED) for path in PATHS),
    }
    assert update[part_key("one", Part.SELECTED)].dtype is torch.bfloat16


@pytest.mark.parametrize(("budget", "count"), [(1.0, 8), (0.29, 2), (0.001, 1), (0.375, 3)])
def test_the_budget_is_a_share_of_all_components_and_one_is_always_sent(budget, count):
    update = sent(adapter(1), adapter(0), budget=budget)
    assert sum(map(sum, masks(update))) == count
