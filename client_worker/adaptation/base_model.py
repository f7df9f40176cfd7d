"""Loads a run's base model and tokenizer, in float32 on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging

from client_worker.adaptation.fingerprint import fingerprint
from client_worker.adaptation.quantise import quantise
from client_worker.adaptation.random_base import random_model
from client_worker.adaptation.sources import RANDOM_PREFIX, find_source
from fedlora.adapters.names import is_inside
from fedlora.adapters.spec import AdapterSpec, Quantization, TaskType
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.seeds import derive_seed

__all__ = ["LoadedBase", "load_base", "outline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBase:
    """A base model as it was loaded; attaching an adapter changes `model` in place."""

    model: Any
    tokenizer: Any
    fingerprint: str
    """of the weights that stay frozen"""


def load_base(spec: AdapterSpec, *, seed: int, hub_cache: Path | None = None) -> LoadedBase:
    """Loads the base model of a run and checks that it is the run's.

    A head that the base does not bring is drawn from the seed, so that every worker of a run
    begins with the same one.

    Args:
        spec: names the model, its task and its labels.
        seed: of the run.
        hub_cache: folder for downloads; None for the usual one.

    Raises:
        FedLoraError: INVALID_MODEL if it cannot be loaded, or has no weights for a module that the
            run leaves frozen; BASE_MISMATCH if its fingerprint is not the one in the run.
    """
    base = spec.base_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "base"))
        if base.model_id.startswith(RANDOM_PREFIX):
            family = base.model_id.removeprefix(RANDOM_PREFIX)
            model, tokenizer = random_model(family, spec.task_type, _head(spec))
        else:
            model, tokenizer = _pretrained(spec, hub_cache)
    _require_tokens(spec, tokenizer)
    if tokenizer.pad_token_id is None:
        # Padding is masked and has no loss, so which token it is does not matter.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise FedLoraError(
            Reason.INVALID_MODEL,
            f"the tokenizer of the base model {base.model_id!r} names no token to pad with: "
            "neither a pad_token, nor an eos_token or unk_token that it knows",
            hint='Set one of those it has, such as tokenizer.eos_token = "</s>", and save it again',
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    # A cache of keys and values is for generation; it also stands against packing.
    model.config.use_cache = False
    found = fingerprint(model.state_dict(), trained=spec.modules_to_save)
    if base.fingerprint and found != base.fingerprint:
        raise FedLoraError(
            Reason.BASE_MISMATCH,
            f"the base model {base.model_id!r} has the fingerprint {found} here, "
            f"expected {base.fingerprint}",
            hint="Load the same weights as the other workers, or set model.revision",
        )
    if base.quantization is Quantization.NF4:
        quantise(model, trained=spec.modules_to_save)
    return LoadedBase(model=model, tokenizer=tokenizer, fingerprint=found)


def outline(spec: AdapterSpec, *, hub_cache: Path | None = None) -> nn.Module:
    """The base model of a run without its weights: modules and shapes, on the meta device.

    Args:
        spec: names the model, its task and its labels.
        hub_cache: folder for downloads; None for the usual one.

    Raises:
        FedLoraError: INVALID_MODEL if its configuration cannot be loaded.
    """
    model_id = spec.base_model.model_id
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        if model_id.startswith(RANDOM_PREFIX):
            family = model_id.removeprefix(RANDOM_PREFIX)
            model, _ = random_model(family, spec.task_type, _head(spec))
        else:
            location, options = _options(spec, hub_cache)
            with _refusing(spec), _quiet():
                config = AutoConfig.from_pretrained(location, **_head(spec), **options)
                model = _loader(spec).from_config(config)
    outlined: nn.Module = model
    return outlined


def _pretrained(spec: AdapterSpec, hub_cache: Path | None) -> tuple[Any, Any]:
    location, options = _options(spec, hub_cache)
    with _refusing(spec), _quiet():
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        model, info = _loader(spec).from_pretrained(
            location,
            dtype=torch.float32,
            output_loading_info=True,
            # A head for other labels than the run's is replaced, and then counts as missing.
            ignore_mismatched_sizes=spec.task_type is TaskType.SEQUENCE_CLASSIFICATION,
            **_head(spec),
            **options,
        )
    _require_no_frozen_noise(spec, info, model.state_dict())
    return model, tokenizer


def _loader(spec: AdapterSpec) -> Any:
    classifies = spec.task_type is TaskType.SEQUENCE_CLASSIFICATION
    return AutoModelForSequenceClassification if classifies else AutoModelForCausalLM


def _options(spec: AdapterSpec, hub_cache: Path | None) -> tuple[str, dict[str, Any]]:
    """Where the model is, and how it is got from there."""
    source = find_source(spec.base_model.model_id)
    options: dict[str, Any] = {"local_files_only": source.is_local}
    if spec.base_model.revision:
        options["revision"] = spec.base_model.revision
    if hub_cache is not None:
        options["cache_dir"] = str(hub_cache)
    return source.location, options


@contextlib.contextmanager
def _refusing(spec: AdapterSpec) -> Iterator[None]:
    """Says of a model that cannot be loaded which one it is."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise FedLoraError(
            Reason.INVALID_MODEL,
            f"the base model {spec.base_model.model_id!r} cannot be loaded for "
            f"{spec.task_type.value}: {str(error).strip()}",
            hint="Name a folder or package on this machine, or a model of the hub that it reaches; "
            "in a configuration file, a folder beside it begins with ./",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and load reports: what matters in them is raised or fits the run."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _head(spec: AdapterSpec) -> dict[str, Any]:
    """What the configuration of a classifier says of its labels."""
    if spec.task_type is not TaskType.SEQUENCE_CLASSIFICATION:
        return {}
    return {
        "num_labels": len(spec.labels),
        "id2label": dict(enumerate(spec.labels)),
        "label2id": {label: i for i, label in enumerate(spec.labels)},
    }


def _require_tokens(spec: AdapterSpec, tokenizer: Any) -> None:
    """Refuses what transformers makes up where a folder has no tokenizer: it knows no word."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise FedLoraError(
            Reason.INVALID_MODEL,
            f"the base model {spec.base_model.model_id!r} brings no tokenizer: the one there is "
            f"knows {len(tokenizer)} tokens, all of them special",
            hint="Save it beside the model: tokenizer.save_pretrained(folder)",
        )


def _require_no_frozen_noise(
    spec: AdapterSpec, info: dict[str, Any], names: Collection[str]
) -> None:
    """Weights that the checkpoint lacks are random; frozen, they would stay so."""
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    missing = sorted({*info["missing_keys"], *mismatched})
    if frozen := [name for name in missing if not is_inside(name, spec.modules_to_save)]:
        brought = {*names} - {*missing}
        random = {_outermost(name, brought) for name in frozen if "." in name}
        modules = sorted({*spec.modules_to_save, *random})
        raise FedLoraError(
            Reason.INVALID_MODEL,
            f"the base model {spec.base_model.model_id!r} brings no weights for "
            f"{', '.join(frozen[:4])}, which would stay random and frozen",
            hint=f"Train them: adapter.modules_to_save = {modules}".replace("'", '"'),
        )


def _outermost(name: str, brought: Collection[str]) -> str:
    """The largest module around a tensor that has none of those brought, as peft may be told it."""
    path = name.rpartition(".")[0]
    while (outer := path.rpartition(".")[0]) and not any(
        other.startswith(f"{outer}.") for other in brought
    ):
        path = outer
    ends = path.split(".")
    for n in range(1, len(ends)):
        # A shorter end may be that of other modules, such as each "dense" of an encoder.
        end = ".".join(ends[-n:])
        if not any(is_inside(other, [end]) for other in brought):
            return end
    return path
