from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.worker_runs import (
    LABELS,
    causal_spec,
    classifier_spec,
    completion_rows,
    labelled_rows,
    trainer_for,
    worker_run,
    write_jsonl,
)

from client_worker.data.config import DataConfig
from client_worker.data.encoding import IGNORED
from client_worker.parts import personal_manifest
from client_worker.training.evaluate import evenly, score
from client_worker.training.round_work import RoundWork
from client_worker.training.trainer import TaskAbandoned
from fedlora.adapters.axis import Axis
from fedlora.adapters.names import Part, parse_key, part_key
from fedlora.adapters.shape import AdapterShape
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.label_counts import LabelCounts
from fedlora.runs.partition import PartitionSpec
from fedlora.runs.plan import RoundPlan
from fedlora.runs.tasks import DataSlot, EvaluationScope, EvaluationSplit
from fedlora.tensors.manifest import FLOATS, DataType, TensorManifest


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "labelled.jsonl"
    return DataConfig(
        path=str(write_jsonl(path, labelled_rows(50, test=17))),
        split_column="split",
        held_out_fraction=0.2,
    )


@pytest.fixture(scope="module")
def completions(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "completions.jsonl"
    return DataConfig(path=str(write_jsonl(path, completion_rows(20))), held_out_fraction=0.3)


@pytest.fixture(scope="module")
def trainer(bert, labelled):
    return trainer_for(worker_run(classifier_spec(bert)), labelled)


def one_round(trainer, extras=None, **changes):
    return trainer.train(RoundWork(**{"round": 1, "seed": 1, **changes}), extras)


def test_a_workers_own_scores_are_those_of_its_held_out_rows(trainer):
    (own,) = trainer.evaluate(EvaluationScope.LOCAL, round=1)
    assert (own.scope, own.split) == (EvaluationScope.LOCAL, EvaluationSplit.HELD_OUT)
    assert own.num_examples == 7
    assert trainer.num_train_examples == 26


@pytest.mark.parametrize(
    ("share", "round", "scored"), [(0.4, 1, 3), (0.01, 1, 1), (1.0, 1, 7), (0.4, 2, 7)]
)
def test_a_share_of_the_held_out_rows_is_scored_in_every_round_but_the_last(
    bert, labelled, share, round, scored
):
    run = worker_run(classifier_spec(bert))
    rules = replace(run.rounds, num_rounds=2, held_out_share=share)
    trainer = trainer_for(replace(run, rounds=rules), labelled)
    for scope in (EvaluationScope.LOCAL, EvaluationScope.GLOBAL, EvaluationScope.PERSONAL):
        held_out = trainer.evaluate(scope, round=round)[0]
        assert (held_out.split, held_out.num_examples) == (EvaluationSplit.HELD_OUT, scored)


def test_a_share_is_taken_evenly():
    assert evenly(range(10), 0.3) == [0, 3, 6]
    assert evenly(range(7), 0.9) == list(range(7))
    assert evenly(range(0), 0.5) == []


def test_the_published_adapter_is_scored_on_held_out_rows_and_a_test_shard(trainer):
    scores = trainer.evaluate(EvaluationScope.GLOBAL, round=1, shard_index=1, shard_count=4)
    assert [(s.split.value, s.num_examples) for s in scores] == [("held_out", 7), ("test", 4)]
    assert all(s.scope is EvaluationScope.GLOBAL for s in scores)
    assert set(scores[1].metrics) == {"accuracy", "loss"}


def test_shards_pool_to_the_whole_test_set_exactly(trainer):
    def test_scores(index, count):
        scores = trainer.evaluate(
            EvaluationScope.GLOBAL, round=1, shard_index=index, shard_count=count
        )
        return next(s for s in scores if s.split is EvaluationSplit.TEST)

    whole = test_scores(0, 1)
    shards = [test_scores(i, 5) for i in range(5)]
    assert sum(s.num_examples for s in shards) == whole.num_examples == 17
    assert LabelCounts.total(s.label_counts for s in shards) == whole.label_counts
    for metric, value in whole.metrics.items():
        pooled = sum(s.metrics[metric] * s.num_examples for s in shards) / 17
        assert pooled == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_does_not_exist_is_refused(trainer, index, count):
    with pytest.raises(FedLoraError, match="there is no shard"):
        trainer.evaluate(EvaluationScope.GLOBAL, round=1, shard_index=index, shard_count=count)


def test_a_shard_beyond_a_small_test_set_scores_nothing(trainer):
    scores = trainer.evaluate(EvaluationScope.GLOBAL, round=1, shard_index=30, shard_count=40)
    assert [s.split for s in scores] == [EvaluationSplit.HELD_OUT]


def test_scoring_changes_nothing_and_knows_no_dropout(bert, labelled):
    trainer = trainer_for(worker_run(classifier_spec(bert, lora_dropout=0.5)), labelled)
    one_round(trainer)
    before = trainer.adapter()
    first, second = (trainer.evaluate(EvaluationScope.GLOBAL, round=1) for _ in range(2))
    assert first == second
    assert all(torch.equal(t, before[n]) for n, t in trainer.adapter().items())


def test_training_teaches_what_the_labels_are(bert, labelled):
    trainer = trainer_for(worker_run(classifier_spec(bert), local_epochs=20.0), labelled)
    one_round(trainer)
    (_, test) = trainer.evaluate(EvaluationScope.GLOBAL, round=1)
    assert test.metrics["accuracy"] > 0.9


def test_a_language_model_is_scored_by_loss_perplexity_and_tokens(llama, completions):
    trainer = trainer_for(worker_run(causal_spec(llama), local_epochs=3.0), completions)
    (before,) = trainer.evaluate(EvaluationScope.LOCAL, round=1)
    one_round(trainer)
    (after,) = trainer.evaluate(EvaluationScope.LOCAL, round=1)
    assert before.num_examples == 6
    assert after.metrics["loss"] < before.metrics["loss"]
    assert after.metrics["perplexity"] == pytest.approx(math.exp(after.metrics["loss"]))
    assert 0 <= after.metrics["exact_match"] <= after.metrics["token_accuracy"] <= 1
    assert after.label_counts is None


def test_an_exact_match_is_what_greedy_decoding_gives(llama, completions):
    trainer = trainer_for(worker_run(causal_spec(llama), local_epochs=40.0), completions)
    one_round(trainer)
    rows, matches = [*trainer._data.train, *trainer._data.held_out], []
    for row in rows:
        begin = next(i for i, target in enumerate(row.targets) if target != IGNORED)
        prompt, answer = torch.tensor([row.input_ids[:begin]]), row.input_ids[begin:]
        told = trainer.module.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=len(answer),
        )
        matches.append(tuple(told[0, begin:].tolist()) == answer)
    found = score(
        trainer.module,
        rows,
        precision=trainer._precision,
        pad_id=trainer._model.pad_id,
        per_token=True,
    )
    # Neither none nor all: the comparison says something.
    assert 0 < sum(matches) < len(rows)
    assert found.metrics["exact_match"] == sum(matches) / len(rows)


def test_the_outcome_tells_what_a_round_took(bert, labelled):
    outcome = one_round(trainer_for(worker_run(classifier_spec(bert)), labelled))
    assert outcome.num_examples == 26
    assert outcome.num_steps == 7
    assert set(outcome.metrics) == {
        "train_loss",
        "train_seconds",
        "examples_per_second",
        "peak_device_bytes",
        "micro_batch_size",
    }
    assert all(value > 0 for value in outcome.metrics.values())


def test_workers_of_one_run_begin_with_one_adapter_and_one_layout(bert, labelled):
    run = worker_run(classifier_spec(bert))
    partition = PartitionSpec(num_slots=2)
    one, two = (
        trainer_for(run, labelled, slot=DataSlot(index=i, partition=partition)) for i in (0, 1)
    )
    assert one.layout == two.layout
    assert all(torch.equal(t, two.adapter()[n]) for n, t in one.adapter().items())
    assert one.num_train_examples + two.num_train_examples < 33


def test_the_optimiser_begins_anew_each_round(bert, labelled):
    run = worker_run(classifier_spec(bert))
    used, fresh = trainer_for(run, labelled), trainer_for(run, labelled)
    start = used.adapter()
    one_round(used, seed=9)
    used.load_adapter(start)
    one_round(used, round=2)
    one_round(fresh, round=2)
    assert all(torch.equal(t, fresh.adapter()[n]) for n, t in used.adapter().items())


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_adapter_in_the_wires_dtype_goes_out_and_comes_in(bert, labelled, dtype):
    run = replace(worker_run(classifier_spec(bert)), wire_dtype=dtype)
    trainer = trainer_for(run, labelled, rank=2)
    one_round(trainer)
    sent = trainer.adapter()
    assert not trainer.layout.manifest(2, dtype).difference(TensorManifest.of(sent))
    other = trainer_for(run, labelled, rank=2)
    other.load_adapter(sent)
    assert all(torch.equal(t, sent[n]) for n, t in other.adapter().items())


def test_an_adapter_of_another_rank_is_refused(bert, labelled, trainer):
    other = trainer_for(worker_run(classifier_spec(bert)), labelled, rank=2)
    with pytest.raises(FedLoraError, match=r"expected f32 \[2, 24\], got f32 \[4, 24\]"):
        other.load_adapter(trainer.adapter())


def test_packing_is_refused_for_a_classifier(bert, labelled):
    with pytest.raises(FedLoraError, match=r"training\.packing is for causal_lm") as caught:
        trainer_for(worker_run(classifier_spec(bert), packing=True), labelled)
    assert caught.value.reason is Reason.INVALID_CONFIG


def test_logit_adjustment_is_refused_for_a_language_model(llama, completions):
    with pytest.raises(FedLoraError, match=r"training\.logit_adjustment is for sequence_class"):
        trainer_for(worker_run(causal_spec(llama), logit_adjustment=1.0), completions)


def test_logit_adjustment_spares_the_labels_a_worker_does_not_have(bert, tmp_path):
    rows = [row for row in labelled_rows(24) if row["label"] != "net"]
    data = DataConfig(path=str(write_jsonl(tmp_path / "a.jsonl", rows)), held_out_fraction=0.0)

    def head_moved(strength: float) -> float:
        run = worker_run(classifier_spec(bert), logit_adjustment=strength, max_gradient_norm=0.0)
        trainer = trainer_for(run, data)
        name = "base_model.model.classifier.bias"
        before = trainer.adapter()[name]
        one_round(trainer)
        return float((trainer.adapter()[name] - before)[LABELS.index("net")].abs())

    assert head_moved(0.0) > 1e-2
    assert head_moved(1.0) == 0


def test_broken_data_are_told_before_the_model_is_looked_at(labelled):
    run = worker_run(classifier_spec("./no-such-model"))
    with pytest.raises(FedLoraError, match="no column 'txet'"):
        trainer_for(run, replace(labelled, text_column="txet"))
    with pytest.raises(FedLoraError, match="no-such-model' does not exist"):
        trainer_for(run, labelled)


# --- plans -------------------------------------------------------------------------------


def moved(before, after) -> set[Part | None]:
    return {parse_key(n).part for n, t in before.items() if not torch.equal(t, after[n])}


def test_what_a_plan_does_not_name_stays_bit_for_bit_and_plans_may_alternate(bert, labelled):
    trainer = trainer_for(worker_run(classifier_spec(bert), weight_decay=0.1), labelled)
    # A's gradient is zero while B is: the first round moves B whatever is trained.
    for round, part in enumerate((Part.B, Part.A, Part.B), start=1):
        before = trainer.adapter()
        one_round(trainer, round=round, plan=RoundPlan(trained=(part,)))
        assert moved(before, trainer.adapter()) == {part, None}


def test_private_parts_are_trained_like_those_that_are_sent(bert, labelled):
    run = worker_run(classifier_spec(bert))
    one, two = trainer_for(run, labelled), trainer_for(run, labelled)
    one_round(one)
    one_round(two, plan=RoundPlan(trained=(Part.A,), private=(Part.B,)))
    assert moved(one.adapter(), two.adapter()) == set()


def test_a_frozen_part_gets_no_gradient_from_an_earlier_round(bert, labelled):
    run = worker_run(classifier_spec(bert))
    used, fresh = trainer_for(run, labelled), trainer_for(run, labelled)
    start = used.adapter()
    one_round(used, plan=RoundPlan(trained=(Part.B,)))
    used.load_adapter(start)
    one_round(used)
    one_round(fresh)
    assert moved(used.adapter(), fresh.adapter()) == set()


def test_the_private_part_keeps_its_precision_where_the_wire_has_less(bert, labelled):
    run = replace(worker_run(classifier_spec(bert)), wire_dtype=DataType.BF16)
    trainer = trainer_for(run, labelled)
    start = trainer.adapter()
    one_round(trainer)
    private = {n: t for n, t in trainer.trained_values().items() if "lora_B" in n}
    sent = trainer.adapter()
    assert any(not torch.equal(t, sent[n].float()) for n, t in private.items())
    trainer.load_adapter(start, private)
    values = trainer.trained_values()
    assert all(torch.equal(values[n], t) for n, t in private.items())
    assert all(torch.equal(t, start[n]) for n, t in trainer.adapter().items() if n not in private)


ASKED = ("loss_at_start", "loss_reduction", "score_mean", "score_variance")


def test_the_figures_that_a_plan_asks_for_are_those_of_the_training_data(bert, tmp_path):
    data = DataConfig(
        path=str(write_jsonl(tmp_path / "a.jsonl", labelled_rows(20))), held_out_fraction=0.5
    )
    run = worker_run(classifier_spec(bert, lora_dropout=0.5), local_epochs=5.0)

    def scored(rows):
        return score(
            trainer._model.module,
            rows,
            precision=trainer._precision,
            pad_id=trainer._model.pad_id,
            per_token=False,
        ).metrics["loss"]

    trainer = trainer_for(run, data)
    before = scored(trainer._data.train)
    plan = RoundPlan(required_metrics=ASKED, settings={"score_bound": 100.0})
    metrics = one_round(trainer, plan=plan).metrics
    after = [scored([row]) for row in trainer._data.train]
    assert metrics["loss_at_start"] == pytest.approx(before, rel=1e-5)
    mean = sum(after) / len(after)
    assert metrics["loss_reduction"] == pytest.approx(before - mean, rel=1e-4)
    squares = [loss**2 for loss in after]
    mean = sum(squares) / len(squares)
    assert metrics["score_mean"] == pytest.approx(mean, rel=1e-4)
    variance = sum((s - mean) ** 2 for s in squares) / len(squares)
    assert metrics["score_variance"] == pytest.approx(variance, rel=1e-3)


def test_scores_are_clipped_where_the_plan_says(llama, completions):
    trainer = trainer_for(worker_run(causal_spec(llama)), completions)
    plan = RoundPlan(required_metrics=ASKED, settings={"score_bound": 0.25})
    metrics = one_round(trainer, plan=plan).metrics
    assert metrics["score_mean"] == 0.25
    assert metrics["score_variance"] == 0


def test_measuring_changes_nothing_of_the_training(bert, labelled):
    run = worker_run(classifier_spec(bert, lora_dropout=0.3))
    one, two = trainer_for(run, labelled), trainer_for(run, labelled)
    one_round(one)
    one_round(two, plan=RoundPlan(required_metrics=ASKED))
    assert moved(one.adapter(), two.adapter()) == set()


def test_a_round_is_left_while_it_is_still_measured(bert, labelled):
    trainer = trainer_for(worker_run(classifier_spec(bert)), labelled)
    before = trainer.adapter()
    with pytest.raises(TaskAbandoned):
        one_round(trainer, plan=RoundPlan(required_metrics=ASKED), should_abandon=lambda: True)
    assert moved(before, trainer.adapter()) == set()


# --- stages beside the rounds ------------------------------------------------------------

STAGES = {
    "refine_steps": 4.0,
    "refine_learning_rate": 1e-2,
    "personal_epochs": 2.0,
    "personal_learning_rate": 1e-2,
}


def beside(call, *arguments, plan):
    return call(RoundWork(round=1, seed=5, plan=plan), *arguments)


def trained_once(bert, labelled, kind=AdapterKind.LORA):
    """A trainer whose B has directions."""
    trainer = trainer_for(worker_run(classifier_spec(bert, kind=kind)), labelled)
    one_round(trainer)
    return trainer


@pytest.mark.parametrize("kind", list(AdapterKind))
@pytest.mark.parametrize("axis", list(Axis))
def test_a_refinement_turns_the_directions_and_changes_nothing_else(bert, labelled, axis, kind):
    trainer = trained_once(bert, labelled, kind)
    before = trainer.adapter()
    plan = RoundPlan(trained=(Part.A,), settings={**STAGES, "axis": float(axis.code)})
    outcome = beside(trainer.refine, plan=plan)
    after = trainer.adapter()
    assert outcome.num_steps == 4
    assert moved(before, after) == {Part.A}
    for name, tensor in before.items():
        if parse_key(name).part is Part.A:
            dim = axis.summed("a")
            torch.testing.assert_close(after[name].norm(dim=dim), tensor.norm(dim=dim))


def test_a_refinement_without_an_axis_moves_the_part_itself(bert, labelled):
    trainer = trained_once(bert, labelled)
    before = trainer.adapter()
    beside(trainer.refine, plan=RoundPlan(trained=(Part.A,), settings=STAGES))
    after = trainer.adapter()
    assert moved(before, after) == {Part.A}
    name = next(n for n in before if "lora_A" in n)
    assert (after[name].norm(dim=1) - before[name].norm(dim=1)).abs().max() > 1e-4


@pytest.mark.parametrize("kind", list(AdapterKind))
@pytest.mark.parametrize("axis", list(Axis))
def test_the_personal_stage_changes_bs_magnitudes_and_nothing_else(bert, labelled, axis, kind):
    trainer = trained_once(bert, labelled, kind)
    before = trainer.adapter()
    plan = RoundPlan(settings={**STAGES, "axis": float(axis.code)})
    own = beside(trainer.personalise, None, plan=plan)
    after = trainer.adapter()
    assert moved(before, after) == {Part.B}
    dim = axis.summed("b")
    for module in trainer.layout.modules:
        key = part_key(module.path, Part.B, hira=kind is AdapterKind.HIRA)
        one, other = (torch.nn.functional.normalize(s[key], dim=dim) for s in (before, after))
        # A magnitude may pass through zero.
        torch.testing.assert_close(one.abs(), other.abs(), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(after[key].norm(dim=dim), own[module.path].abs())
    assert not TensorManifest.of(own).difference(
        personal_manifest(
            AdapterShape(layout=trainer.layout, kind=kind, rank=4, dtype=DataType.F32), plan
        )
    )


def test_the_next_personal_stage_begins_with_the_magnitudes_of_the_last(bert, labelled):
    trainer = trained_once(bert, labelled)
    published = trainer.adapter()
    still = RoundPlan(settings={**STAGES, "personal_learning_rate": 1e-12})
    own = beside(trainer.personalise, None, plan=RoundPlan(settings=STAGES))
    personal = trainer.adapter()
    trainer.load_adapter(published)
    beside(trainer.personalise, own, plan=still)
    for name, tensor in trainer.adapter().items():
        torch.testing.assert_close(tensor, personal[name], atol=1e-6, rtol=1e-5)


def test_a_round_after_the_stages_trains_the_full_modules_again(bert, labelled):
    trainer = trained_once(bert, labelled)
    beside(trainer.refine, plan=RoundPlan(trained=(Part.A,), settings=STAGES))
    before = trainer.adapter()
    one_round(trainer)
    assert moved(before, trainer.adapter()) == {Part.A, Part.B, None}
