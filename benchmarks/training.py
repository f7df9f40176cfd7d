"""A worker's local training beside a bare loop of torch and peft.

    python benchmarks/training.py [CONFIG] [--set KEY=VALUE ...] [--device DEVICE] [--repeats N]

Both train the same adapter of the same model on the same batches in the same order, one stretch of
steps after the other in turn, on one device. The bare loop is what somebody writes who needs
nothing else: peft's `get_peft_model` on a model of its own, batches made beforehand, forward,
cross-entropy, backward, clip, AdamW. It pays for nothing of how a worker attaches its adapter, no
progress, no abandoning, no check for NaN, no schedule, no batch that is put together on the way.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from reliability import machine
from torch import nn
from torch.nn.functional import cross_entropy

from client_worker.adaptation.base_model import load_base
from client_worker.data.batches import batches_of_round, num_steps
from client_worker.data.collate import Batch, pad
from client_worker.data.config import DataConfig
from client_worker.device import resolve_device, torch_device, verify_device
from client_worker.training.material import EncodedData, load_material
from client_worker.training.precision import Precision
from client_worker.training.round_work import RoundWork
from client_worker.training.trainer import LocalTrainer
from fedlora.adapters.spec import AdapterKind, Quantization
from fedlora.config import load_config
from fedlora.runs.seeds import derive_seed
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import DataSlot

ROOT = Path(__file__).resolve().parents[1]
_SEED = 1


def main() -> None:
    arguments = _parser().parse_args()
    device = resolve_device(arguments.device)
    verify_device()
    config = load_config(
        arguments.config,
        services={"data": DataConfig},
        overrides=[f"training.local_steps={arguments.steps}", *arguments.overrides],
        environ={},
    )
    run, data = config.need_run(), config.build("data", DataConfig)
    slot = DataSlot(index=0, partition=run.partition) if run.partition else None
    model, encoded, precision = load_material(
        run, rank=run.adapter.r, data=data, slot=slot, device=device, cache_dir=None, threads=0
    )
    trainer = LocalTrainer(run, model, encoded, precision)
    peft_model = _peft_model(run, precision)
    batches = [b.to(torch_device(device)) for b in _batches(run, encoded, model.pad_id)]
    begun = trainer.trained_values()
    ours, bare = [], []
    for repeat in range(arguments.repeats + 1):
        trainer.load_adapter(begun)
        ours.append(_ours(trainer, precision))
        set_peft_model_state_dict(peft_model, begun)
        bare.append(_bare(peft_model, batches, run, precision))
        print(f"stretch {repeat}: {ours[-1]:.2f} s, bare {bare[-1]:.2f} s", flush=True)
    # The first of each warms caches.
    ratios = [b / o for o, b in zip(ours[1:], bare[1:], strict=True)]
    rate = len(batches) / statistics.median(ours[1:])
    lines = [
        "# Local training beside a bare loop",
        "",
        (
            f"`python benchmarks/training.py`: {machine()}. {len(batches)} steps of "
            f"{run.training.batch_size} examples a stretch, {arguments.repeats} stretches of each "
            f"in turn, `{run.adapter.base_model.model_id}` on {device}, "
            f"{torch.get_num_threads()} threads."
        ),
        "",
        "| a worker's steps per second | of the bare loop's, median | lowest | highest |",
        "|---:|---:|---:|---:|",
        f"| {rate:.2f} | {statistics.median(ratios):.1%} | {min(ratios):.1%} | {max(ratios):.1%} |",
        "",
    ]
    arguments.out.write_text("\n".join(lines))
    print("\n".join(lines))


def _batches(run: RunSpec, data: EncodedData, pad_id: int) -> Sequence[Batch]:
    """Those of the round that the trainer trains."""
    training = run.training
    steps = num_steps(
        len(data.train),
        batch_size=training.batch_size,
        local_epochs=training.local_epochs,
        local_steps=training.local_steps,
    )
    order = batches_of_round(
        [e.num_tokens for e in data.train],
        batch_size=training.batch_size,
        steps=steps,
        generator=torch.Generator().manual_seed(derive_seed(_SEED, 1, "order")),
    )
    return [pad([data.train[i] for i in c], pad_id=pad_id, per_token=False) for c in order]


def _ours(trainer: LocalTrainer, precision: Precision) -> float:
    began = time.perf_counter()
    trainer.train(RoundWork(round=1, seed=_SEED))
    _wait(precision)
    return time.perf_counter() - began


def _peft_model(run: RunSpec, precision: Precision) -> PeftModel:
    """What peft attaches by itself to weights that were loaded for it alone."""
    spec = run.adapter
    if spec.kind is not AdapterKind.LORA or spec.base_model.quantization is not Quantization.NONE:
        raise SystemExit("the bare loop is of LoRA on a base model that is not quantised")
    base = load_base(spec, seed=run.seed).model
    # To peft a string is an expression, or "all-linear"; a list holds names.
    first, *others = spec.target_modules
    # Frozen weights in the type that is computed in, as a worker has them; what is trained is not.
    model = get_peft_model(
        base.to(precision.device, precision.autocast_dtype or torch.float32),
        LoraConfig(
            r=spec.r,
            lora_alpha=spec.lora_alpha,
            use_rslora=spec.use_rslora,
            lora_dropout=spec.lora_dropout,
            target_modules=[first, *others] if others or first.isidentifier() else first,
            modules_to_save=list(spec.modules_to_save) or None,
        ),
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _bare(model: PeftModel, batches: Sequence[Batch], run: RunSpec, precision: Precision) -> float:
    parameters = [p for p in model.parameters() if p.requires_grad]
    began = time.perf_counter()
    optimizer = torch.optim.AdamW(parameters, lr=run.training.learning_rate, weight_decay=0.0)
    model.train()
    for batch in batches:
        with precision.autocast():
            logits = model(**batch.inputs).logits
        cross_entropy(logits.float(), batch.targets).backward()
        nn.utils.clip_grad_norm_(parameters, run.training.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _wait(precision)
    return time.perf_counter() - began


def _wait(precision: Precision) -> None:
    if precision.device.type == "cuda":
        torch.cuda.synchronize(precision.device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "examples/quickstart.toml")
    parser.add_argument(
        "--set", dest="overrides", nargs="+", default=[], metavar="KEY=VALUE",
        help="override the configuration, for example training.batch_size=8",
    )  # fmt: skip
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/training.md")
    return parser


if __name__ == "__main__":
    main()
