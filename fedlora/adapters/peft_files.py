"""PEFT adapter folders: `adapter_config.json` beside `adapter_model.safetensors`.

Read and written without peft, so that a server needs neither it nor transformers. What the
configuration says of rank and scale is resolved per module the way peft does (measured with
0.21.2): a key of `rank_pattern` or `alpha_pattern` is a regular expression for the module's
path or a trailing part of it that begins at a dot, the first match in the file's order wins,
and the two patterns are independent. s = lora_alpha / r, with `use_rslora` lora_alpha / sqrt(r),
both of that module.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from safetensors import SafetensorError, safe_open

from fedlora.adapters.names import Part, parse_key
from fedlora.adapters.spec import AdapterKind, AdapterSpec, TaskType
from fedlora.errors import FedLoraError, Reason

__all__ = [
    "CONFIG_NAME",
    "WEIGHTS_NAME",
    "AdapterFolder",
    "adapter_config_json",
    "folder_config_json",
    "peft_target_modules",
    "read_peft_folder",
    "write_folder",
    "write_peft_folder",
]

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_PLAIN_NAME = re.compile(r"[\w.-]+")

_OTHER_MATHEMATICS = (
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
"""settings under which the low-rank part is not s B A on the named linear layers"""

_NARROWING = ("exclude_modules", "layers_to_transform", "layers_pattern")
"""settings that take modules out of what `target_modules` matches"""

_PEFT_HEADS = ("classifier", "score")
"""modules that peft looks for in the file of every adapter whose task is SEQ_CLS"""

_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""beginnings of `init_lora_weights` that subtract the adapter's start from the base model"""


@dataclass(frozen=True, kw_only=True)
class AdapterFolder:
    """A PEFT adapter on disk: the settings that decide its mathematics, resolved per module."""

    folder: Path
    weights: Path
    kind: AdapterKind
    base_model: str
    """`base_model_name_or_path`; empty where the file does not say"""
    revision: str
    task_type: str | None
    target_modules: str | tuple[str, ...]
    """a regular expression, or names, sorted; paths where other settings narrow the choice"""
    modules_to_save: tuple[str, ...]
    r: int
    lora_alpha: float
    use_rslora: bool
    fan_in_fan_out: bool
    """the base stores these layers in x out (GPT-2's Conv1D). lora_A and lora_B do not, so
    aggregation does not care; merging into the base does"""
    ranks: Mapping[str, int]
    """rank of each adapted module by path"""
    scaling: Mapping[str, float]
    """s of each adapted module by path"""

    @property
    def is_uniform(self) -> bool:
        """Whether all modules have the rank r and one scale."""
        return set(self.ranks.values()) == {self.r} and len(set(self.scaling.values())) == 1


def read_peft_folder(folder: Path) -> AdapterFolder:
    """Reads an adapter saved by `save_pretrained`; the tensors stay on disk.

    Raises:
        FedLoraError: NOT_FOUND without the two files; INVALID_PAYLOAD for files that cannot be
            read or contradict each other; UNSUPPORTED_METHOD for an adapter whose update is not
            that of LoRA, DoRA or HiRA, naming the setting.
    """
    config, weights = _load_config(folder), folder / WEIGHTS_NAME
    _refuse_other_mathematics(folder, config)
    kind = _kind(config)
    targets = config.get("target_modules")
    if not isinstance(targets, str | list):
        raise _bad(folder, f"target_modules: expected names or an expression, got {targets!r}")
    r = _number(folder, config, "r")
    # HiRA has no scale: alpha = r, s = 1.
    alpha = r if kind is AdapterKind.HIRA else _number(folder, config, "lora_alpha")
    rank_pattern, alpha_pattern = (
        _pattern(folder, config, name) for name in ("rank_pattern", "alpha_pattern")
    )
    rslora = bool(config.get("use_rslora", False))
    ranks, scaling = _module_ranks(folder, weights), dict[str, float]()
    if any(config.get(name) is not None for name in _NARROWING):
        targets = list(ranks)
    for path, rank in ranks.items():
        expected = _by_pattern(rank_pattern, path, r)
        if rank != expected:
            raise _bad(
                folder,
                f"module {path!r} has rank {rank} in {WEIGHTS_NAME}, but {CONFIG_NAME} says "
                f"{expected:g}",
            )
        module_alpha = _by_pattern(alpha_pattern, path, alpha)
        if kind is AdapterKind.HIRA:
            module_alpha = rank
        scaling[path] = module_alpha / (math.sqrt(rank) if rslora else rank)
    return AdapterFolder(
        folder=folder,
        weights=weights,
        kind=kind,
        base_model=str(config.get("base_model_name_or_path") or ""),
        revision=str(config.get("revision") or ""),
        task_type=cast("str | None", config.get("task_type")),
        target_modules=targets if isinstance(targets, str) else tuple(sorted(targets)),
        modules_to_save=tuple(sorted(cast("list[str]", config.get("modules_to_save") or []))),
        r=int(r),
        lora_alpha=alpha,
        use_rslora=rslora,
        fan_in_fan_out=bool(config.get("fan_in_fan_out", False)),
        ranks=ranks,
        scaling=scaling,
    )


def peft_target_modules(target_modules: Sequence[str]) -> str | list[str]:
    """What PEFT's `target_modules` is given for the specification's.

    PEFT reads a string as an expression for whole paths (or the word all-linear) and a list as
    trailing parts of paths. A single entry that is no plain name is taken as an expression.
    """
    if len(target_modules) == 1:
        (only,) = target_modules
        if only == "all-linear" or not _PLAIN_NAME.fullmatch(only):
            return only
    return sorted(target_modules)


def folder_config_json(
    *,
    kind: AdapterKind = AdapterKind.LORA,
    base_model: str,
    revision: str = "",
    task_type: str | None,
    target_modules: str | Sequence[str],
    modules_to_save: Sequence[str],
    r: int,
    lora_alpha: float,
    use_rslora: bool = False,
    fan_in_fan_out: bool = False,
) -> str:
    """A minimal `adapter_config.json` of one rank and scale, keys sorted, that peft loads."""
    targets = target_modules if isinstance(target_modules, str) else sorted(target_modules)
    config: dict[str, object] = {
        "base_model_name_or_path": base_model or None,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        # Serving programs read an integer; peft takes either.
        "lora_alpha": int(lora_alpha) if float(lora_alpha).is_integer() else lora_alpha,
        "lora_dropout": 0.0,
        "modules_to_save": sorted(modules_to_save) or None,
        "peft_type": "LORA",
        "r": r,
        "revision": revision or None,
        "target_modules": targets,
        "task_type": task_type,
        "use_rslora": use_rslora,
    }
    if kind is AdapterKind.DORA:
        config["use_dora"] = True
    if kind is AdapterKind.HIRA:
        for name in ("bias", "lora_alpha", "lora_dropout", "use_rslora"):
            del config[name]
        config["peft_type"] = "HIRA"
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def adapter_config_json(spec: AdapterSpec, rank: int) -> str:
    """The `adapter_config.json` of a run's adapter at `rank`, served with `spec.scaling(rank)`.

    It names no task where the head is the base model's own: peft would not load it without one.
    """
    saves_head = any(name.split(".")[-1] in _PEFT_HEADS for name in spec.modules_to_save)
    names_task = saves_head or spec.task_type is not TaskType.SEQUENCE_CLASSIFICATION
    return folder_config_json(
        kind=spec.kind,
        base_model=spec.base_model.model_id,
        revision=spec.base_model.revision,
        task_type=spec.task_type.peft_name if names_task else None,
        target_modules=peft_target_modules(spec.target_modules),
        modules_to_save=spec.modules_to_save,
        r=rank,
        lora_alpha=spec.lora_alpha,
        use_rslora=spec.use_rslora,
    )


def write_peft_folder(folder: Path, *, spec: AdapterSpec, rank: int, weights: Path) -> None:
    """Writes a run's adapter as a folder that `PeftModel.from_pretrained` loads.

    Args:
        folder: where; replaced if it is there. Its parent is created.
        spec: the run's adapter.
        rank: of all modules in `weights`.
        weights: safetensors file with PEFT keys; hard-linked where possible, so it must not be
            changed in place afterwards.
    """
    write_folder(folder, config_json=adapter_config_json(spec, rank), weights=weights)


def write_folder(
    folder: Path, *, config_json: str, weights: Path, extra: Mapping[str, str] | None = None
) -> None:
    """Writes an adapter folder so that it appears complete or not at all.

    Args:
        folder: where; replaced if it is there. Its parent is created.
        config_json: text of `adapter_config.json`.
        weights: the safetensors file, hard-linked where possible, else copied.
        extra: further text files by name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        complete = scratch / "new"
        complete.mkdir()
        target = complete / WEIGHTS_NAME
        try:
            os.link(weights, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(weights, target)
        for name, text in {**(extra or {}), CONFIG_NAME: config_json}.items():
            with (complete / name).open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            # A folder cannot be replaced in one step; the old one moves out of the way first.
            folder.rename(scratch / "old")
        complete.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# --- reading -----------------------------------------------------------------------------


def _bad(folder: Path, what: str) -> FedLoraError:
    return FedLoraError(Reason.INVALID_PAYLOAD, f"adapter {str(folder)!r}: {what}")


def _load_config(folder: Path) -> Mapping[str, object]:
    hint = "Name a folder written by peft's save_pretrained"
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            if name == WEIGHTS_NAME and (folder / "adapter_model.bin").exists():
                hint = "It holds adapter_model.bin, a pickle, which is not read: save it again"
            raise FedLoraError(
                Reason.NOT_FOUND, f"adapter {str(folder)!r}: no file {name}", hint=hint
            )
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except ValueError as error:
        raise _bad(folder, f"{CONFIG_NAME} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise _bad(folder, f"{CONFIG_NAME}: expected an object, got {type(config).__name__}")
    return config


def _refuse_other_mathematics(folder: Path, config: Mapping[str, object]) -> None:
    found = ""
    if config.get("peft_type") not in ("LORA", "HIRA"):
        found = f"peft_type {config.get('peft_type')!r}"
    elif config.get("bias", "none") != "none":
        found = f"bias {config['bias']!r}"
    elif setting := next((name for name in _OTHER_MATHEMATICS if config.get(name)), None):
        found = f"{setting} {config[setting]!r}"
    elif str(config.get("init_lora_weights", True)).startswith(_CHANGES_THE_BASE):
        found = f"init_lora_weights {config['init_lora_weights']!r}"
    if found:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"adapter {str(folder)!r}: expected LoRA, DoRA or HiRA, got {found}",
            hint="Only low-rank updates of an unchanged base model can be averaged as products; "
            "train with LoRA, rsLoRA, DoRA or HiRA",
        )


def _kind(config: Mapping[str, object]) -> AdapterKind:
    if config.get("peft_type") == "HIRA":
        return AdapterKind.HIRA
    return AdapterKind.DORA if config.get("use_dora") else AdapterKind.LORA


def _number(folder: Path, config: Mapping[str, object], name: str) -> float:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise _bad(folder, f"{name}: expected a positive number, got {value!r}")
    return value


def _pattern(folder: Path, config: Mapping[str, object], name: str) -> Mapping[str, float]:
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise _bad(folder, f"{name}: expected an object, got {value!r}")
    for key in value:
        _number(folder, value, key)
        try:
            re.compile(key)
        except re.error as error:
            raise _bad(folder, f"{name}: {key!r} is no regular expression: {error}") from error
    return value


def _by_pattern(pattern: Mapping[str, float], path: str, default: float) -> float:
    for expression, value in pattern.items():
        if re.match(rf"(.*\.)?({expression})$", path):
            return value
    return default


def _module_ranks(folder: Path, weights: Path) -> dict[str, int]:
    try:
        with safe_open(weights, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in sorted(file.keys())}
    except SafetensorError as error:
        raise _bad(folder, f"{WEIGHTS_NAME} cannot be read: {error}") from error
    ranks = {}
    for key, shape in shapes.items():
        try:
            parsed = parse_key(key)
        except FedLoraError as error:
            text = f"adapter {str(folder)!r}: {error.message}"
            raise FedLoraError(error.reason, text, hint=error.hint) from error
        if parsed.part is Part.A:
            ranks[parsed.path] = int(shape[0])
    if not ranks:
        raise _bad(folder, f"{WEIGHTS_NAME} holds no lora_A and no hira_A")
    return ranks
