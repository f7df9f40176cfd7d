"""The quickstart's rounds in one process and on one core: how good are its settings?

    python benchmarks/quickstart_pilot.py [CONFIG] [--set KEY=VALUE ...] [--seeds 0 1]

Everything but the network is real: the workers' `LocalTrainer`, the configuration's aggregation
method over files, the test set. Workers train one after the other, with the seeds the server
would hand out. A seed stands for the run's seed and the partition's: other data on each worker,
another initial adapter, another order of examples. Prints one line a round and a table at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from shared.trainers import trainers_of
from torch import Tensor

from aggregator_service.aggregation import driver, registry
from aggregator_service.aggregation.round_context import RoundContext, StoredAdapter
from client_worker.data.config import DataConfig
from fedlora.config import load_config
from fedlora.runs.seeds import derive_seed
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Evaluation, EvaluationScope, EvaluationSplit
from fedlora.tensors.safetensors_io import decode, encode

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    arguments = _parser().parse_args()
    config = load_config(
        arguments.config, services={"data": DataConfig}, overrides=arguments.overrides
    )
    data = config.build("data", DataConfig)
    results = {}
    for seed in arguments.seeds:
        print(f"seed {seed}, {config.need_run().method.name}: {' '.join(arguments.overrides)}")
        results[seed] = simulate(_with_seed(config.need_run(), seed), data)
    print("\n| seed | test accuracy, round by round | CPU seconds |\n|---|---|---|")
    for seed, (accuracies, cpu_seconds) in results.items():
        rounds = " ".join(f"{a:.3f}" for a in accuracies)
        print(f"| {seed} | {rounds} | {cpu_seconds:.0f} |")


def simulate(run: RunSpec, data: DataConfig) -> tuple[list[float], float]:
    """Test accuracy after each round, and CPU seconds of training in all."""
    workers = trainers_of(run, data)
    print("training examples:", [w.num_train_examples for w in workers])
    recipe = registry.create_recipe(run.method)
    published = workers[0].adapter()
    accuracies, cpu_seconds = [], 0.0
    with tempfile.TemporaryDirectory() as scratch:
        start = Path(scratch, "version-0.safetensors")
        _write(published, start)
        state: Path | None = None
        for round in range(1, run.rounds.num_rounds + 1):
            began = time.process_time()
            contributions, losses = [], []
            local: list[Evaluation] = []
            for slot, worker in enumerate(workers):
                worker.load_adapter(published)
                outcome = worker.train(
                    round=round,
                    seed=derive_seed(run.seed, round, "train", slot),
                    on_progress=lambda *_: None,
                    should_abandon=lambda: False,
                )
                local += worker.evaluate(EvaluationScope.LOCAL)
                losses.append(outcome.metrics["train_loss"])
                path = Path(scratch, f"{slot}.safetensors")
                _write(worker.adapter(), path)
                contributions.append(
                    driver.Contribution(
                        worker=f"worker-{slot}",
                        weight=outcome.num_examples,
                        path=path,
                        scaling=run.adapter.scaling(run.adapter.r),
                    )
                )
            cpu_seconds += time.process_time() - began
            output = Path(scratch, f"version-{round}.safetensors")
            kept = Path(scratch, f"state-{round}.safetensors")
            outcome_of_round = driver.aggregate(
                contributions,
                recipe,
                output=output,
                state_output=kept,
                context=RoundContext(
                    round=round,
                    start=StoredAdapter(path=start, scaling=run.adapter.scaling),
                    state=state,
                ),
                rank=run.adapter.r,
                output_scaling=run.adapter.scaling,
                dtype=run.wire_dtype,
                seed=derive_seed(run.seed, round, "aggregate"),
            )
            start, state = output, kept if outcome_of_round.has_state else None
            published = decode(output, workers[0].layout.manifest(run.adapter.r, run.wire_dtype))
            workers[0].load_adapter(published)
            scores = workers[0].evaluate(EvaluationScope.GLOBAL)
            test = next(s for s in scores if s.split is EvaluationSplit.TEST)
            accuracies.append(test.metrics["accuracy"])
            print(
                f"round {round}: test accuracy {test.metrics['accuracy']:.4f}, "
                f"loss {test.metrics['loss']:.3f}; own held-out {_pooled(local):.3f}; "
                f"train losses {' '.join(f'{x:.2f}' for x in losses)}; {cpu_seconds:.0f} CPU s",
                flush=True,
            )
    return accuracies, cpu_seconds


def _write(adapter: Mapping[str, Tensor], path: Path) -> None:
    path.write_bytes(b"".join(c for _, c in encode(adapter).chunks(0, 2**20)))


def _pooled(scores: list[Evaluation]) -> float:
    count = sum(s.num_examples for s in scores)
    return sum(s.metrics["accuracy"] * s.num_examples for s in scores) / count


def _with_seed(run: RunSpec, seed: int) -> RunSpec:
    partition = dataclasses.replace(run.partition, seed=seed) if run.partition else None
    return dataclasses.replace(run, seed=seed, partition=partition)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "examples/quickstart.toml")
    parser.add_argument(
        "--set", dest="overrides", nargs="+", default=[], metavar="KEY=VALUE",
        help="override the configuration, for example training.learning_rate=2e-3",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    return parser


if __name__ == "__main__":
    main()
