"""What aggregating one layer costs, and how near each method comes: ratios within one run.

    python benchmarks/aggregation.py [--out benchmarks/aggregation.md] [--threads N] [--device cpu]

Every row is one cohort of U clients of rank r on a d x d layer: a common start, 30 % drift and a
scale of its own per client. Times are the best of five (dense: of one). "One pass" reads every
factor once: the memory limit that nothing can beat. "Adam" is what a first reading of FLoRA-NA
suggests: 200 steps at 1e-2 on the dense objective, from the factor mean, best iterate kept. "Dense
SVD" forms T. The two dense baselines run in float32 and up to --dense-limit only; the methods of
the product compute in float64.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aggregator_service.aggregation.base import Aggregator
from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.registry import create
from fedlora.adapters.factors import LoraFactors

ROWS = [(512, 8, 5), (1024, 8, 10), (1024, 16, 10), (4096, 16, 10), (4096, 16, 30)]
"""(d = k, r, U)"""

METHODS: dict[str, Callable[[], Aggregator]] = {
    "fedit": lambda: create("fedit"),
    "flora_na": lambda: create("flora_na"),
    "optimal, QR core": lambda: create("optimal", {"core": "qr"}),
    "optimal, Gram core": lambda: create("optimal", {"core": "gram"}),
}
ADAM_STEPS = 200

_CAPTION = (
    "Milliseconds per layer, in brackets the multiple of one pass; below, the relative error "
    "|BA - T| / |T| reached."
)


@dataclass
class Measured:
    """Best time of one way of aggregating, and the relative error it reached."""

    seconds: float
    error: float


def cohort_of(d: int, r: int, count: int, device: torch.device) -> list[LoraFactors]:
    generator = torch.Generator().manual_seed(d + r + count)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    a0, b0 = normal(r, d) / d**0.5, normal(d, r) / d**0.5
    members = []
    for _ in range(count):
        scale = float(normal(1).mul(0.5).exp())
        a = (a0 + 0.3 * normal(r, d) / d**0.5) * scale
        b = (b0 + 0.3 * normal(d, r) / d**0.5) / scale
        members.append(LoraFactors(a.to(device), b.to(device)))
    return members


def best_time(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    best = float("inf")
    for _ in range(repeats):
        synchronise(device)
        begin = time.perf_counter()
        work()
        synchronise(device)
        best = min(best, time.perf_counter() - begin)
    return best


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def one_pass(cohort: list[LoraFactors]) -> float:
    return sum(float(f.a_RK.sum()) + float(f.b_DR.sum()) for f in cohort)


def dense_ideal(cohort: list[LoraFactors], weights_U: Tensor) -> Tensor:
    b = torch.cat([f.b_DR * float(w) for f, w in zip(cohort, weights_U, strict=True)], dim=1)
    return b @ torch.cat([f.a_RK for f in cohort])


def dense_svd(cohort: list[LoraFactors], weights_U: Tensor, rank: int) -> LoraFactors:
    u, s, vh = torch.linalg.svd(dense_ideal(cohort, weights_U), full_matrices=False)
    root = s[:rank].sqrt()
    return LoraFactors(root[:, None] * vh[:rank], u[:, :rank] * root)


def dense_adam(
    cohort: list[LoraFactors], weights_U: Tensor, steps: int = ADAM_STEPS
) -> LoraFactors:
    """FLoRA-NA's scalars by a first-order method on |BA - T|^2 / |T|^2."""
    target = dense_ideal(cohort, weights_U)
    a_URK = torch.stack([f.a_RK for f in cohort])
    b_UDR = torch.stack([f.b_DR for f in cohort])
    start = weights_U.to(target)
    p, q = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimiser = torch.optim.Adam([p, q], lr=1e-2)
    norm, best, kept = target.square().sum(), float("inf"), (start, start)
    for _ in range(steps):
        b, a = torch.einsum("u,udr->dr", p, b_UDR), torch.einsum("u,urk->rk", q, a_URK)
        loss = (b @ a - target).square().sum() / norm
        if float(loss.detach()) < best:
            best, kept = float(loss.detach()), (p.detach().clone(), q.detach().clone())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    p, q = kept
    return LoraFactors(torch.einsum("u,urk->rk", q, a_URK), torch.einsum("u,udr->dr", p, b_UDR))


def measure_row(
    d: int, r: int, count: int, device: torch.device, dense_limit: int
) -> tuple[float, dict[str, Measured]]:
    cohort = cohort_of(d, r, count, device)
    weights_U = torch.arange(1, count + 1, dtype=torch.float64)
    weights_U /= weights_U.sum()
    wide = [f.to(torch.float64) for f in cohort]
    centred = CentredCohort.of(wide, weights_U)
    ideal = centred.ideal_norm()
    limit = best_time(lambda: one_pass(cohort), device, repeats=10)
    found: dict[str, Measured] = {}
    for name, make in METHODS.items():
        method = make()

        def work(method: Aggregator = method) -> LoraFactors:
            return method.aggregate_module(wide, weights_U, rank=r).factors

        found[name] = Measured(best_time(work, device), centred.error_of(work()) / ideal)
    if d <= dense_limit:
        for name, dense in (
            ("Adam, dense", lambda: dense_adam(cohort, weights_U)),
            ("dense SVD", lambda: dense_svd(cohort, weights_U, r)),
        ):
            begin = time.perf_counter()
            result = dense()
            synchronise(device)
            seconds = time.perf_counter() - begin
            found[name] = Measured(seconds, centred.error_of(result) / ideal)
    return limit, found


def report(rows: list[tuple[tuple[int, int, int], float, dict[str, Measured]]], where: str) -> str:
    intro = " ".join((__doc__ or "").split("\n\n")[2].split())
    lines = [
        "# Aggregating one layer",
        "",
        f"Measured by `python benchmarks/aggregation.py` on {where}. {intro}",
        "",
        _CAPTION,
        "",
    ]
    names = [*METHODS, "Adam, dense", "dense SVD"]
    lines += ["| d = k | r | U | one pass | " + " | ".join(names) + " |"]
    lines += ["|" + " ---: |" * (4 + len(names))]
    for (d, r, count), limit, found in rows:
        cells = [
            f"{1e3 * m.seconds:.3g} ({m.seconds / limit:,.0f}x)" if m else "–"
            for m in (found.get(n) for n in names)
        ]
        lines.append(f"| {d} | {r} | {count} | {1e3 * limit:.3g} | " + " | ".join(cells) + " |")
    lines += ["", "| d = k | r | U | " + " | ".join(names) + " |"]
    lines += ["|" + " ---: |" * (3 + len(names))]
    for (d, r, count), _, found in rows:
        cells = [f"{m.error:.4f}" if m else "–" for m in (found.get(n) for n in names)]
        lines.append(f"| {d} | {r} | {count} | " + " | ".join(cells) + " |")
    lines += ["", "Within one row:", ""]
    for (d, r, count), _, found in rows:
        if "dense SVD" in found:
            adam = found["Adam, dense"].seconds / found["flora_na"].seconds
            svd = found["dense SVD"].seconds / found["optimal, QR core"].seconds
            lines.append(
                f"- d = {d}, r = {r}, U = {count}: flora_na is {adam:,.0f} times as fast as Adam "
                f"on the dense objective, optimal {svd:,.0f} times as fast as a dense SVD."
            )
    return "\n".join(lines) + "\n"


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dense-limit", type=int, default=1024)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    # The first optimiser of a process loads much of torch, which is not what is measured.
    dense_adam(cohort_of(64, 2, 2, device), torch.ones(2, dtype=torch.float64), steps=1)
    rows = []
    for d, r, count in ROWS:
        limit, found = measure_row(d, r, count, device, given.dense_limit)
        rows.append(((d, r, count), limit, found))
        print(f"d = {d}, r = {r}, U = {count}: one pass {1e3 * limit:.3g} ms", flush=True)
        for name, m in found.items():
            print(f"    {name:20} {1e3 * m.seconds:10.2f} ms   error {m.error:.4f}", flush=True)
    given.out.write_text(report(rows, machine(device)), encoding="utf-8")


if __name__ == "__main__":
    main()
