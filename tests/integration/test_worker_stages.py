"""Real workers in a run with a stage on the server's data and a personal one after each round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.planned_worker import Payload, Recording
from support.worker_federation import Finished, federate, of_part, parts_in, run_of, same
from support.worker_runs import classifier_spec
from torch import Tensor

from aggregator_service.transport import server as transport_server
from client_worker.training.round_work import RoundWork
from client_worker.training.trainer import LocalTrainer
from fedlora.adapters.names import Part
from fedlora.runs.tasks import TaskKind

STAGES = {"refine_steps": 5, "refine_learning_rate": 1e-2, "personal_learning_rate": 1e-2}


def uploads(recording: Recording, kind: TaskKind) -> dict[tuple[int, str], Payload]:
    """By round and worker."""
    mark = f"/{kind.value}/"
    return {
        (p.header.round, p.header.task_id.rsplit("/", 1)[-1]): p
        for p in recording.up
        if mark in p.header.task_id
    }


def units(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Columns of B at length 1, where it has any."""
    return {name: torch.nn.functional.normalize(t, dim=0) for name, t in tensors.items()}


async def run(tmp_path: Path, bert: Path, **options: float | str) -> Finished:
    spec = run_of(classifier_spec(bert), "fedlora_optimizer", options={**STAGES, **options})
    return await federate(tmp_path, spec, server_data=bool(options.get("refine_steps", 1)))


async def test_directions_are_refined_for_all_and_magnitudes_are_each_workers_own(
    tmp_path: Path, bert: Path, recording: Recording
):
    done = await run(tmp_path, bert)
    # Version 0; then of each round what it came to, and that refined.
    assert len(done.versions) == 5
    refined = uploads(recording, TaskKind.REFINE)
    assert sorted(refined) == [(1, "server"), (2, "server")]
    for (round, _), payload in refined.items():
        combined, published = done.versions[2 * round - 1], done.versions[2 * round]
        assert parts_in(payload.tensors) == {Part.A, None}
        for name, tensor in published.items():
            if ".lora_A." in name:
                assert not torch.equal(tensor, combined[name])
                torch.testing.assert_close(tensor.norm(dim=1), combined[name].norm(dim=1))
            else:
                assert torch.equal(tensor, combined[name])
    # What a worker scores last in a round is the published adapter with B's lengths its own.
    crossed = [t for p in (*recording.up, *recording.down) for t in p.tensors.values()]
    own = {}
    for name in ("w-0", "w-1"):
        scored = done.lived[name]
        assert len(scored) == 6
        for round in (1, 2):
            trained, published, personal = scored[3 * round - 3 : 3 * round]
            assert same(published, done.versions[2 * round])
            b, mine = (of_part(model, Part.B) for model in (published, personal))
            assert not same(b, mine)
            torch.testing.assert_close(units(mine), units(b), rtol=1e-4, atol=1e-5)
            assert all(torch.equal(t, published[n]) for n, t in personal.items() if n not in mine)
            lengths = [t.norm(dim=0) for t in mine.values()]
            assert not any(torch.equal(t, c) for t in (*mine.values(), *lengths) for c in crossed)
            own[name, round] = mine
            assert not same(of_part(trained, Part.B), mine)
    assert not same(own["w-0", 2], own["w-1", 2])


async def test_in_parallel_the_personal_stage_begins_before_the_refinement(
    tmp_path: Path, bert: Path
):
    done = await run(tmp_path, bert, order="parallel")
    for name in ("w-0", "w-1"):
        scored = done.lived[name]
        for round in (1, 2):
            _, published, personal = scored[3 * round - 3 : 3 * round]
            combined, refined = done.versions[2 * round - 1], done.versions[2 * round]
            assert same(published, refined)
            assert same(of_part(personal, Part.A), of_part(combined, Part.A))
            assert not same(of_part(personal, Part.A), of_part(refined, Part.A))
            assert not same(of_part(personal, Part.B), of_part(combined, Part.B))


async def test_the_cohort_itself_turns_a_in_every_second_round(
    tmp_path: Path, bert: Path, recording: Recording
):
    options = {**STAGES, "global_stage": "federated", "personal_epochs": 0}
    spec = run_of(classifier_spec(bert), "fedlora_optimizer", options=options)
    done = await federate(tmp_path, spec)
    assert not uploads(recording, TaskKind.REFINE)
    sent = uploads(recording, TaskKind.TRAIN)
    assert sorted(sent) == [(1, "w-0"), (1, "w-1"), (2, "w-0"), (2, "w-1")]
    _, before, after = done.versions
    for (round, _), payload in sent.items():
        parts = {Part.A, None} if round == 2 else {Part.A, Part.B, None}
        assert parts_in(payload.tensors) == parts
        if round == 2:
            for name, tensor in payload.tensors.items():
                if ".lora_A." in name:
                    assert not torch.equal(tensor, before[name])
                    torch.testing.assert_close(tensor.norm(dim=1), before[name].norm(dim=1))
                else:
                    assert torch.equal(tensor, before[name])
    for name, tensor in after.items():
        if ".lora_A." in name:
            assert not torch.equal(tensor, before[name])
            torch.testing.assert_close(tensor.norm(dim=1), before[name].norm(dim=1))
        else:
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-7)


async def test_each_personal_stage_goes_on_from_the_one_before_it(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
):
    stages: dict[int, list[tuple[object, dict[str, Tensor]]]] = {}
    personalise = LocalTrainer.personalise

    def noted(trainer: LocalTrainer, work: RoundWork, own: Any) -> dict[str, Tensor]:
        made = personalise(trainer, work, own)
        stages.setdefault(id(trainer), []).append((own, made))
        return made

    monkeypatch.setattr(LocalTrainer, "personalise", noted)
    await run(tmp_path, bert, refine_steps=0)
    assert len(stages) == 2
    for (own_1, made_1), (own_2, _) in stages.values():
        assert own_1 is None
        assert isinstance(own_2, dict)
        assert same(own_2, made_1)


async def test_no_round_begins_from_what_is_personal(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
):
    sent = []
    for epochs in (1, 0):
        recording = Recording()
        monkeypatch.setattr(transport_server, "FederationServicer", recording.servicer())
        folder = tmp_path / str(epochs)
        folder.mkdir()
        await run(folder, bert, refine_steps=0, personal_epochs=epochs)
        sent.append(uploads(recording, TaskKind.TRAIN))
    assert sent[0].keys() == sent[1].keys()
    assert len(sent[0]) == 4
    for key, payload in sent[0].items():
        assert same(payload.tensors, sent[1][key].tensors)
