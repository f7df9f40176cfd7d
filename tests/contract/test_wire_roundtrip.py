"""Every type that crosses the wire: same fields on both sides, and back unchanged."""

from __future__ import annotations

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from fedlora.adapters import names
from fedlora.adapters import spec as adapters
from fedlora.codecs import spec as codecs
from fedlora.errors import FedLoraError, Reason
from fedlora.identity import members
from fedlora.proto.v1 import adapter_pb2, admin_pb2, federation_pb2, run_pb2, tensor_pb2
from fedlora.runs import (
    continual,
    label_counts,
    method,
    partition,
    plan,
    report,
    rounds,
    spec,
    tasks,
    training,
)
from fedlora.tensors import manifest
from fedlora.wire.convert import from_message, to_message

PAIRS = {
    manifest.TensorInfo: tensor_pb2.TensorInfo,
    manifest.TensorManifest: tensor_pb2.TensorManifest,
    adapters.BaseModel: adapter_pb2.BaseModel,
    adapters.AdapterSpec: adapter_pb2.AdapterSpec,
    adapters.AdaptedModule: adapter_pb2.AdaptedModule,
    adapters.AdapterLayout: adapter_pb2.AdapterLayout,
    method.MethodSpec: run_pb2.MethodSpec,
    rounds.RoundRules: run_pb2.RoundRules,
    training.TrainingSpec: run_pb2.TrainingSpec,
    partition.PartitionSpec: run_pb2.PartitionSpec,
    codecs.CodecSpec: run_pb2.CodecSpec,
    continual.ContinualSpec: run_pb2.ContinualSpec,
    spec.RunSpec: run_pb2.RunSpec,
    members.Invite: admin_pb2.InviteRequest,
    members.Invited: admin_pb2.InviteResponse,
    members.Member: admin_pb2.Member,
    members.Revocation: admin_pb2.RevokeRequest,
    label_counts.LabelCounts: run_pb2.LabelCounts,
    tasks.Evaluation: run_pb2.Evaluation,
    tasks.Capabilities: federation_pb2.Capabilities,
    tasks.Limits: federation_pb2.Limits,
    tasks.DataSlot: federation_pb2.DataSlot,
    tasks.Registration: federation_pb2.RegisterResponse,
    tasks.Task: federation_pb2.Task,
    tasks.UpdateHeader: federation_pb2.UpdateHeader,
    tasks.AdapterHeader: federation_pb2.AdapterHeader,
    tasks.Acknowledgement: federation_pb2.PushUpdateResponse,
    tasks.UploadStatus: federation_pb2.GetUploadStatusResponse,
    tasks.Progress: federation_pb2.Progress,
    report.CertificateEntry: run_pb2.CertificateEntry,
    report.Certificate: run_pb2.Certificate,
    report.UpdateReport: run_pb2.UpdateReport,
    method.RuleSpec: run_pb2.RuleSpec,
    plan.RoundPlan: run_pb2.RoundPlan,
    report.WorkerEvaluation: run_pb2.WorkerEvaluation,
    report.RoundReport: run_pb2.RoundReport,
    report.WorkerInfo: admin_pb2.WorkerInfo,
    report.BestRound: run_pb2.BestRound,
    report.Run: admin_pb2.Run,
    report.RunEvent: admin_pb2.RunEvent,
}

# Fields whose values must fit together; anything else is filled by type.
CHOSEN: dict[type, dict[str, Any]] = {
    adapters.AdapterSpec: {"lora_dropout": 0.25},
    rounds.RoundRules: {
        "engine": rounds.RoundEngine.BUFFERED,
        "quorum": 2,
        "cohort_size": 0,
        "over_selection": 0.0,
        # One word or a section says who is taken, not both.
        "sampling": rounds.Sampling.UNIFORM,
        "sampling_candidates": 0,
        "mixing": 0.5,
        "test_share": 0.5,
        "held_out_share": 1.0,
        "best_by": "held_out_loss",
    },
    training.TrainingSpec: {
        "warmup_fraction": 0.5,
        "batch_size": 8,
        "micro_batch_size": 4,
        "optimizer": training.OptimizerName.SGD,
        "momentum": 0.5,
    },
    spec.RunSpec: {
        "name": "run",
        "wire_dtype": manifest.DataType.BF16,
        # Experiences join over its rounds, and no round is judged beside them.
        "rounds": rounds.RoundRules(num_rounds=7),
    },
    continual.ContinualSpec: {"order": ("b", "a", "c"), "sizes": (2, 1)},
    codecs.CodecSpec: {"kept_share": 0.5},
    method.MethodSpec: {"options": {"ridge": 0.5, "flag": True, "core": "qr"}},
    plan.RoundPlan: {"private": (names.Part.MAGNITUDE,)},
    method.RuleSpec: {"options": {"cap": 0.5, "kind": "soft"}},
    report.RunEvent: {"detail": {"names": ["a"], "count": 2.0, "flag": True, "nothing": None}},
}


def example(annotation: Any) -> Any:
    """A value of a type that is not its default."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return example(next(a for a in typing.get_args(annotation) if a is not types.NoneType))
    if origin is tuple:
        return (example(typing.get_args(annotation)[0]),)
    if origin is not None and issubclass(origin, Mapping):
        return {"key": example(typing.get_args(annotation)[1])}
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        values = {f.name: example(hints[f.name]) for f in dataclasses.fields(annotation)}
        return annotation(**{**values, **CHOSEN.get(annotation, {})})
    if issubclass(annotation, enum.Enum):
        return list(annotation)[-1]
    return {int: 5, float: 2.5, bool: True, str: "text", bytes: b"\x01" * 32, object: 1.0}[
        annotation
    ]


@pytest.mark.parametrize("domain", PAIRS, ids=lambda d: d.__name__)
def test_dataclass_and_message_have_the_same_fields(domain: type):
    fields = {f.name for f in dataclasses.fields(domain)}
    assert fields == set(PAIRS[domain].DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize("domain", PAIRS, ids=lambda d: d.__name__)
def test_a_value_comes_back_unchanged(domain: type):
    value = example(domain)
    message = to_message(value, PAIRS[domain])
    again = PAIRS[domain].FromString(message.SerializeToString())
    assert from_message(again, domain) == value


def test_a_sampling_that_is_named_by_its_word_comes_back_unchanged():
    word = {"sampling": rounds.Sampling.POWER_OF_CHOICE, "sampling_candidates": 5}
    value = dataclasses.replace(example(rounds.RoundRules), sampler=None, **word)
    message = to_message(value, run_pb2.RoundRules)
    assert from_message(message, rounds.RoundRules) == value


def enums_of(descriptor: Descriptor) -> set[str]:
    return {f.enum_type.full_name for f in descriptor.fields if f.enum_type is not None}


def test_every_enum_has_the_same_values_on_both_sides():
    seen = 0
    for domain, message in PAIRS.items():
        hints = typing.get_type_hints(domain)
        for field in message.DESCRIPTOR.fields:
            if field.enum_type is None:
                continue
            annotation = hints[field.name]
            annotation = (typing.get_args(annotation) or (annotation,))[0]
            prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
            wire = {v.name.removeprefix(prefix).lower() for v in field.enum_type.values[1:]}
            assert wire == {m.value for m in annotation}, field.full_name
            seen += 1
    assert seen >= 12


def test_an_enum_that_is_unset_or_unknown_is_refused_not_read_as_a_default():
    message = to_message(example(tasks.Evaluation), run_pb2.Evaluation)
    for value in (0, 99):
        message.scope = value
        with pytest.raises(FedLoraError, match="EVALUATION_SCOPE_LOCAL") as caught:
            from_message(message, tasks.Evaluation)
        assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_a_required_message_that_is_absent_is_refused():
    message = to_message(example(spec.RunSpec), run_pb2.RunSpec)
    message.ClearField("adapter")
    with pytest.raises(FedLoraError, match="'adapter'"):
        from_message(message, spec.RunSpec)


def test_what_the_dataclass_refuses_is_refused_on_arrival():
    message = to_message(example(spec.RunSpec), run_pb2.RunSpec)
    message.name = "../../etc/passwd"
    with pytest.raises(FedLoraError) as caught:
        from_message(message, spec.RunSpec)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_figures_that_are_no_numbers_become_null_where_json_must_show_them():
    event = dataclasses.replace(example(report.RunEvent), detail={"loss": math.nan})
    message = to_message(event, admin_pb2.RunEvent)
    assert from_message(message, report.RunEvent).detail == {"loss": None}
