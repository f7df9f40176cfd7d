"""What holds for every codec under every method: aggregation sees adapters, not codecs.

An update in a codec says an adapter. Every method, given the coded update, publishes bit for bit
what it publishes given that adapter in a plain file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.builders import METRICS, MODULES, write_update
from support.runs import run_spec
from torch import Tensor

from aggregator_service.aggregation import driver
from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.contribution import Coding, Contribution
from aggregator_service.aggregation.registry import METHODS
from aggregator_service.aggregation.run_checks import check_run
from fedlora.adapters.names import Part, parse_key, part_key
from fedlora.codecs.spec import CodecName, CodecSpec
from fedlora.codecs.updates import coded_update, create_codec
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import RoundPlan, Selection

SCALING = 2.0


def takes_codecs(name: str) -> bool:
    return all(
        plan.selection is Selection.ALL and not plan.may_lower_rank for plan in METHODS[name].plans
    )


CODED = sorted(name for name in METHODS if takes_codecs(name))
every_codec = pytest.mark.parametrize("codec", list(CodecName))


def version(path: Path, *, core: bool) -> dict[str, Tensor]:
    """What a round begins from."""
    tensors = load_file(write_update(path, seed=3, saved={"classifier.weight": (3, 7)}))
    if core:
        tensors |= {part_key(m, Part.CORE): torch.eye(4) for m in MODULES}
        save_file(tensors, path)
    return tensors


def update(given: dict[str, Tensor], plan: RoundPlan, seed: int) -> dict[str, Tensor]:
    """What the plan makes a worker send, trained."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: value + 0.1 * torch.randn(value.shape, generator=generator)
        for key, value in sorted(given.items())
        if parse_key(key).part in (None, *plan.trained)
    }


@every_codec
@pytest.mark.parametrize("name", CODED)
def test_a_method_publishes_the_same_of_a_coded_update_and_of_what_it_says(
    tmp_path: Path, name: str, codec: CodecName
):
    recipe = compose(METHODS[name])
    (plan, *_) = recipe.plans()
    given = version(tmp_path / "start", core=Part.CORE in plan.trained)
    start = driver.StoredAdapter(path=tmp_path / "start", scaling=SCALING)
    coding = Coding(codec=create_codec(CodecSpec(name=codec)), base=start)
    coded, plain = [], []
    for u in range(3):
        sent = coded_update(coding.codec, update(given, plan, u), given, {})
        one = Contribution(
            worker=f"w-{u}",
            weight=1.0 + u,
            path=tmp_path / f"coded-{u}",
            scaling=SCALING,
            given_rank=4,
            metrics=METRICS,
            coding=coding,
        )
        save_file(dict(sent.tensors), one.path)
        with one.open() as file:
            save_file({key: file.raw(key) for key in file.shapes}, tmp_path / f"plain-{u}")
        coded.append(one)
        plain.append(replace(one, path=tmp_path / f"plain-{u}", coding=None))
    for label, cohort in (("coded", coded), ("plain", plain)):
        driver.aggregate(
            cohort,
            recipe,
            output=tmp_path / label,
            state_output=tmp_path / f"{label}-state",
            context=driver.RoundContext(start=start),
            rank=4,
            output_scaling=SCALING,
        )
    assert (tmp_path / "coded").read_bytes() == (tmp_path / "plain").read_bytes()


@every_codec
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_run_may_have_a_codec_where_its_workers_send_all_that_they_were_given(
    name: str, codec: CodecName
):
    recipe = compose(METHODS[name])
    spec = replace(
        run_spec(method=name, num_workers=max(2, recipe.properties.min_clients)),
        codec=CodecSpec(name=codec),
    )
    if takes_codecs(name):
        check_run(recipe, spec, has_base_weights=True)
        return
    with pytest.raises(FedLoraError, match="cannot take updates in a codec") as error:
        check_run(recipe, spec, has_base_weights=True)
    assert error.value.reason is Reason.UNSUPPORTED_METHOD


def test_some_methods_take_codecs_and_some_do_not():
    assert {"fedit", "flora_na", "optimal", "ffa_lora", "fed_sb"} <= {*CODED}
    assert {*CODED} != {*METHODS}
