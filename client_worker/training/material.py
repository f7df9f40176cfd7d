"""What a trainer is made of: the run's model with a fresh adapter, the data, a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from client_worker.adaptation.adapted_model import AdaptedModel
from client_worker.adaptation.attach import attach_adapter
from client_worker.adaptation.base_model import load_base
from client_worker.adaptation.packing import require_exact_packing
from client_worker.adaptation.quantise import compute_in
from client_worker.data.config import DataConfig
from client_worker.data.encoding import EncodedExample, encode_examples
from client_worker.data.local_data import load_local_data
from client_worker.device import torch_device
from client_worker.training.input_limits import InputLimits
from client_worker.training.precision import Precision
from fedlora.process_limits import available_cores
from fedlora.runs.spec import RunSpec
from fedlora.runs.task_checks import check_task
from fedlora.runs.tasks import DataSlot

__all__ = ["EncodedData", "load_material"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedData:
    """The worker's examples as tokens."""

    train: Sequence[EncodedExample]
    held_out: Sequence[EncodedExample]
    test: Sequence[EncodedExample]


def load_material(
    run: RunSpec,
    *,
    rank: int,
    data: DataConfig,
    slot: DataSlot | None,
    device: str,
    cache_dir: Path | None,
    threads: int,
) -> tuple[AdaptedModel, EncodedData, Precision]:
    """Reads the data, loads the base model and attaches a fresh adapter.

    Arguments and errors are those of `client_worker.training.trainer.LocalTrainer.create`.
    """
    spec, training = run.adapter, run.training
    check_task(run)
    torch.set_num_threads(threads or min(torch.get_num_threads(), available_cores()))
    # The data first: what is wrong with them shows in a second, a model may take minutes.
    examples = load_local_data(
        data,
        task=spec.task_type,
        labels=spec.labels,
        slot=slot,
        seed=run.seed,
        stream=run.continual,
    )
    base = load_base(spec, seed=run.seed, hub_cache=cache_dir / "hub" if cache_dir else None)
    limits = InputLimits.of(base.model)
    model = attach_adapter(base, spec, rank=rank, seed=run.seed, dtype=run.wire_dtype)
    encoded = EncodedData(
        **{
            name: encode_examples(
                getattr(examples, name),
                base.tokenizer,
                max_tokens=training.max_sequence_tokens,
            )
            for name in ("train", "held_out", "test")
        }
    )
    limits.check((*encoded.train, *encoded.held_out, *encoded.test), training, pad_id=model.pad_id)
    precision = Precision.of(torch_device(device), training.precision)
    model.module.to(precision.device)
    compute_in(model.module, precision.autocast_dtype or torch.float32)
    if training.packing:
        require_exact_packing(model.module.eval(), len(base.tokenizer))
    if training.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model, encoded, precision
