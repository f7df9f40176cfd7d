"""Local training."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fedlora.errors import invalid_argument

__all__ = [
    "ComputePrecision",
    "LearningRateSchedule",
    "OptimizerName",
    "TrainingSpec",
]


class LearningRateSchedule(enum.StrEnum):
    """Course of the learning rate over the rounds of a run."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class OptimizerName(enum.StrEnum):
    """What makes the steps of local training."""

    ADAMW = "adamw"
    SGD = "sgd"


class ComputePrecision(enum.StrEnum):
    """In which a model's matrices are multiplied; weights and adapters are float32 throughout."""

    AUTO = "auto"
    F32 = "f32"
    BF16 = "bf16"
    F16 = "f16"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """Local training; equal for all workers of a run."""

    learning_rate: float = 2e-4
    """peak learning rate on the LoRA factors"""
    head_learning_rate: float = 0.0
    """learning rate of modules_to_save; 0 takes learning_rate"""
    b_learning_rate_ratio: float = 1.0
    """rate of lora_B over that of lora_A, which is learning_rate. LoRA+ (Hayou et al. 2024,
    arXiv:2402.12354) argues for more than 1, and for more the wider the model; 1 is plain LoRA"""
    schedule: LearningRateSchedule = LearningRateSchedule.LINEAR
    """course of both rates over the rounds of the run"""
    local_epochs: float = 1.0
    """passes over the worker's data in one round; ignored where local_steps is set"""
    local_steps: int = 0
    """optimiser steps in one round; 0 takes local_epochs"""
    batch_size: int = 16
    """examples per optimiser step"""
    micro_batch_size: int = 0
    """examples per forward pass; 0 takes batch_size"""
    max_sequence_tokens: int = 512
    """longer texts are cut"""
    optimizer: OptimizerName = OptimizerName.ADAMW
    """what makes the steps: adamw, or sgd; it begins anew in every round"""
    momentum: float = 0.0
    """share of its last step that sgd repeats"""
    weight_decay: float = 0.0
    """the optimiser's weight decay"""
    warmup_fraction: float = 0.0
    """share of a round's steps over which the rate rises from 0"""
    max_gradient_norm: float = 1.0
    """global norm at which gradients are clipped; 0 leaves them"""
    precision: ComputePrecision = ComputePrecision.AUTO
    """in which matrices are multiplied, in training and scoring: auto is bf16 on a CUDA device that
    has it, f16 with a scaled loss on another, and f32 on a CPU; bf16 on a CPU pays where it has
    instructions for it (AMX, AVX512-BF16)"""
    gradient_checkpointing: bool = False
    """trade time for memory"""
    packing: bool = False
    """pack several examples into one sequence (causal_lm)"""
    logit_adjustment: float = 0.0
    """correction for a worker's own label frequencies while it trains (sequence_classification):
    logits get this times the log of each label's share; 1 is the balanced softmax, 0 is none"""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise invalid_argument(
                f"training.learning_rate must be positive, got {self.learning_rate}"
            )
        if self.head_learning_rate < 0:
            raise invalid_argument("training.head_learning_rate must not be negative")
        if not 0 < self.b_learning_rate_ratio < float("inf"):
            raise invalid_argument(
                "training.b_learning_rate_ratio must be positive and finite, got "
                f"{self.b_learning_rate_ratio}"
            )
        if self.local_steps < 0 or (self.local_steps == 0 and not self.local_epochs > 0):
            raise invalid_argument(
                "set training.local_epochs above 0, or training.local_steps above 0"
            )
        if self.batch_size < 1:
            raise invalid_argument(f"training.batch_size must be at least 1, got {self.batch_size}")
        if self.micro_batch_size < 0 or self.micro_batch_size > self.batch_size:
            raise invalid_argument(
                f"training.micro_batch_size must lie between 0 and batch_size {self.batch_size}, "
                f"got {self.micro_batch_size}"
            )
        if self.max_sequence_tokens < 2:
            raise invalid_argument("training.max_sequence_tokens must be at least 2")
        if not 0 <= self.warmup_fraction < 1:
            raise invalid_argument("training.warmup_fraction must lie in [0, 1)")
        if not 0 <= self.momentum < 1:
            raise invalid_argument(f"training.momentum must lie in [0, 1), got {self.momentum}")
        if self.momentum and self.optimizer is not OptimizerName.SGD:
            raise invalid_argument(
                f"training.momentum is {self.momentum}, and training.optimizer "
                f"{self.optimizer.value} has moments of its own",
                'Set training.optimizer = "sgd", or leave training.momentum out',
            )
        if self.logit_adjustment < 0:
            raise invalid_argument("training.logit_adjustment must not be negative")
        if self.max_gradient_norm < 0 or self.weight_decay < 0:
            raise invalid_argument(
                "training.max_gradient_norm and training.weight_decay must not be negative"
            )
