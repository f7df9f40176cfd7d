"""Each worker ends with an adapter of its own, which plain peft loads with the worker's logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.worker_federation import federate, run_of
from support.worker_runs import classifier_spec
from torch import Tensor, nn
from typer.testing import CliRunner

from client_worker.adaptation.base_model import load_base
from client_worker.training.trainer import LocalTrainer
from fedlora.adapters.spec import AdapterKind, BaseModel
from fedlora.runs.method import RuleSpec
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import EvaluationScope
from fedlora_cli.app import app

IDS = torch.tensor([[2, 7, 9, 3, 11, 8], [2, 14, 6, 21, 5, 3]])

LOCAL, GLOBAL, PERSONAL = EvaluationScope.LOCAL, EvaluationScope.GLOBAL, EvaluationScope.PERSONAL


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, EvaluationScope], Tensor]:
    """Logits of each trainer's model when it was last scored in a scope."""
    found: dict[tuple[int, EvaluationScope], Tensor] = {}
    evaluate = LocalTrainer.evaluate

    def noted(trainer: LocalTrainer, scope: EvaluationScope, **which: Any) -> Any:
        found[id(trainer), scope] = logits(trainer.module)
        return evaluate(trainer, scope, **which)

    monkeypatch.setattr(LocalTrainer, "evaluate", noted)
    return found


def export(run: str, worker: str, out: Path, *options: str) -> str:
    command = ["export", run, "--worker", worker, "--out", str(out), *options]
    return CliRunner().invoke(app, command, catch_exceptions=False).stdout


BERT = "<bert>"
OPTIMIZER = {"refine_steps": 0}


def case(
    method: str, scope: EvaluationScope, *plugins: str, options: Any = None, **adapter: Any
) -> tuple[RunSpec, EvaluationScope]:
    """A run, and the scope in which its workers score what is their own."""
    spec = run_of(classifier_spec(BERT, **adapter), method, options=options)
    return replace(spec, plugins=tuple(RuleSpec(name=name) for name in plugins)), scope


CASES = {
    "as trained": case("flora_na", LOCAL),
    "dora": case("fedit", LOCAL, kind=AdapterKind.DORA),
    "hira": case("fedit", LOCAL, kind=AdapterKind.HIRA),
    "half frozen": case("ffa_lora", LOCAL),
    "a changed base": case("flora", LOCAL),
    "a core": case("fed_sb", LOCAL),
    "private B": case("fedsa_lora", GLOBAL),
    "personal magnitudes": case("fedlora_optimizer", PERSONAL, options=OPTIMIZER),
    "both stages from one version": case(
        "fedlora_optimizer", PERSONAL, options={**OPTIMIZER, "order": "parallel"}
    ),
    "ditto": case("fedit", PERSONAL, "ditto"),
}


@pytest.mark.parametrize(("run", "scope"), CASES.values(), ids=list(CASES))
async def test_a_workers_own_adapter_computes_what_the_worker_scored(
    tmp_path: Path,
    bert: Path,
    scored: dict[tuple[int, EvaluationScope], Tensor],
    run: RunSpec,
    scope: EvaluationScope,
):
    base_model = BaseModel(model_id=str(bert))
    spec = replace(run, adapter=replace(run.adapter, base_model=base_model))
    cache_dir = tmp_path / "cache"
    done = await federate(tmp_path, spec, cache_dir=cache_dir)
    own = {}
    for name, trainer in done.trainers.items():
        told = export("test", name, tmp_path / name / "own", "--cache-dir", str(cache_dir))
        assert ("as trained in round 2" in told) is (scope is LOCAL)
        base = load_base(spec.adapter, seed=spec.seed).model
        own[name] = logits(PeftModel.from_pretrained(base, tmp_path / name / "own"))
        torch.testing.assert_close(own[name], scored[id(trainer), scope], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(own["w-0"], own["w-1"], atol=1e-4)


async def test_a_workers_own_adapter_has_the_rank_that_the_worker_pruned_it_to(
    tmp_path: Path, bert: Path, scored: dict[tuple[int, EvaluationScope], Tensor]
):
    options = {"tail_fraction": 0.75, "tail_penalty": 10.0, "min_rank": 2}
    spec = run_of(classifier_spec(bert), "hetlora", num_rounds=3, options=options)
    cache_dir = tmp_path / "cache"
    done = await federate(tmp_path, spec, max_ranks={"w-1": 3}, cache_dir=cache_dir)
    export("test", "w-1", tmp_path / "own", "--cache-dir", str(cache_dir))
    model = PeftModel.from_pretrained(
        load_base(spec.adapter, seed=spec.seed).model, tmp_path / "own"
    )
    assert model.peft_config["default"].r == done.trainers["w-1"].rank == 2
    expected = scored[id(done.trainers["w-1"]), LOCAL]
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
