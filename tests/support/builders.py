"""Cohorts of LoRA updates with known properties, in memory and as files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aggregator_service.aggregation.contribution import Contribution
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import PREFIX, Factor, lora_key

D, K = 24, 17
"""out_features and in_features of the usual test layer: not square, not multiples of a rank"""


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def start(d: int = D, k: int = K, r: int = 4, seed: int = 0) -> LoraFactors:
    return LoraFactors(normal(seed, r, k), normal(seed + 1, d, r))


def drifted(
    count: int, *, drift: float = 0.3, d: int = D, k: int = K, r: int = 4, seed: int = 0
) -> list[LoraFactors]:
    """Clients near one common start: what local training leaves."""
    origin = start(d, k, r, seed)
    return [
        LoraFactors(
            origin.a_RK + drift * normal(1000 * seed + 10 * u + 2, r, k),
            origin.b_DR + drift * normal(1000 * seed + 10 * u + 3, d, r),
        )
        for u in range(count)
    ]


def unrelated(ranks: Sequence[int], *, d: int = D, k: int = K, seed: int = 0) -> list[LoraFactors]:
    """Clients with nothing in common, of the given ranks."""
    return [start(d, k, r, 500 * seed + 7 * u + 50) for u, r in enumerate(ranks)]


def rescaled_copies(factors: Sequence[float], origin: LoraFactors) -> list[LoraFactors]:
    """One product, factor c in A and 1/c in B: scalars undo it."""
    return [LoraFactors(origin.a_RK * c, origin.b_DR / c) for c in factors]


def rotated_copies(count: int, origin: LoraFactors, *, noise: float = 0.0) -> list[LoraFactors]:
    """One product in random orthogonal gauges, with noise relative to the factors' entries."""
    copies = []
    for u in range(count):
        turn = torch.linalg.qr(normal(900 + u, origin.rank, origin.rank))[0]
        a = turn.T @ origin.a_RK + noise * normal(2000 + u, *origin.a_RK.shape)
        b = origin.b_DR @ turn + noise * normal(3000 + u, *origin.b_DR.shape)
        copies.append(LoraFactors(a, b))
    return copies


METRICS = {"loss_reduction": 0.5, "score_mean": 0.4, "score_variance": 0.1, "loss_at_start": 0.7}
"""what any weighting rule may ask for"""

MODULES: Mapping[str, tuple[int, int]] = {
    "encoder.0.query": (24, 17),
    "encoder.0.value": (11, 17),
    "encoder.1.dense": (13, 24),
}
"""out_features and in_features by path, for updates as files"""


def write_update(
    path: Path,
    *,
    seed: int,
    rank: int = 4,
    dtype: torch.dtype = torch.float32,
    modules: Mapping[str, tuple[int, int]] = MODULES,
    origin: Path | None = None,
    drift: float = 0.3,
    saved: Mapping[str, tuple[int, ...]] | None = None,
    ranks: Mapping[str, int] | None = None,
) -> Path:
    """A PEFT weights file: random, or near the first components of the file `origin`."""
    before = load_file(origin) if origin else {}
    tensors: dict[str, Tensor] = {}
    for i, (module, (d, k)) in enumerate(sorted(modules.items())):
        r = (ranks or {}).get(module, rank)
        for factor, shape in ((Factor.LORA_A, (r, k)), (Factor.LORA_B, (d, r))):
            key = lora_key(module, factor)
            value = normal(seed * 100 + 10 * i + (factor is Factor.LORA_B), *shape)
            if origin:
                value = before[key].double()[: shape[0], : shape[1]] + drift * value
            tensors[key] = value.to(dtype).contiguous()
    for i, (name, shape) in enumerate(sorted((saved or {}).items())):
        tensors[PREFIX + name] = normal(seed * 100 + 90 + i, *shape).to(dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def folded(path: Path, module: str, scaling: float = 1.0) -> LoraFactors:
    """A module's factors in such a file, in float64, with the scale in B."""
    tensors = load_file(path)
    a, b = (tensors[lora_key(module, f)].double() for f in (Factor.LORA_A, Factor.LORA_B))
    return LoraFactors.fold(a, b, scaling)


def contribution(
    path: Path, *, weight: float = 1.0, scaling: float = 1.0, worker: str = ""
) -> Contribution:
    return Contribution(
        worker=worker or path.stem, weight=weight, path=path, scaling=scaling, metrics=METRICS
    )


def write_folder(folder: Path, *, seed: int, rank: int = 4, **config: object) -> Path:
    """A PEFT adapter folder as save_pretrained leaves it; keywords change its configuration."""
    folder.mkdir(parents=True)
    update = {k: config.pop(k) for k in ("dtype", "saved", "modules", "ranks") if k in config}
    write_update(folder / "adapter_model.safetensors", seed=seed, rank=rank, **update)
    settings: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "tiny-base",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["query", "value", "dense"],
        "bias": "none",
        "modules_to_save": None,
    }
    settings.update(config)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
