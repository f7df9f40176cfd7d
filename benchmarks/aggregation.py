"""What closing a round costs: time, memory and error, as ratios within one run.

    python benchmarks/aggregation.py [--quick] [--threads 2] [--device cuda] [--out PAGE]

A cohort is U clients near a common start: 30 % drift and a scale of its own per client. "Read" sums
every factor once, from memory and not from a cache: the limit that nothing can beat. "Adam" is
what a first reading of FLoRA-NA suggests, 100 steps on the dense objective |BA - T|^2 from the
factor mean, best iterate kept; "dense SVD" forms T and decomposes it. Both run in float32. Times
are the best of several; dense ones of one.

The page and the plot (aggregation.svg) are written anew by each run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aggregator_service.aggregation.base import GlobalModule, Method, ModuleCohort
from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.certificate import measure
from aggregator_service.aggregation.client_grams import ClientGrams
from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.flexlora import FlexLoRA
from aggregator_service.aggregation.methods.flora_na import FLoRANA
from aggregator_service.aggregation.methods.florist import FLoRIST
from aggregator_service.aggregation.methods.optimal import Optimal
from aggregator_service.aggregation.parallel import in_order
from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import gram_matrix

ADAM_STEPS = 100


@dataclass(frozen=True)
class Model:
    """A model's adapted modules, all of one shape."""

    name: str
    width: int
    rank: int
    modules: int


ROBERTA = Model("RoBERTa-large", 1024, 8, 48)
LLAMA = Model("LLaMA-2-7B", 4096, 16, 64)
METHODS: dict[str, Method] = {
    "fedit": FedIT(),
    "flora_na": FLoRANA(),
    "optimal": Optimal(),
    "flexlora": FlexLoRA(),
    "florist": FLoRIST(),
}
AHEAD = ("flora_na", "optimal")
"""methods that gain from Gram blocks made before the close"""


# --- cohorts and clocks --------------------------------------------------------------------------


def start_of(width: int, rank: int, device: torch.device) -> LoraFactors:
    generator = torch.Generator().manual_seed(width + rank)
    a = torch.randn(rank, width, generator=generator) / width**0.5
    b = torch.randn(width, rank, generator=generator) / width**0.5
    return LoraFactors(a.to(device), b.to(device))


def cohort_of(width: int, rank: int, count: int, device: torch.device) -> ModuleCohort:
    generator = torch.Generator().manual_seed(count)
    origin = start_of(width, rank, torch.device("cpu"))
    members = []
    for _ in range(count):
        scale = float(torch.randn(1, generator=generator).mul(0.5).exp())
        shift_a = torch.randn(rank, width, generator=generator) / width**0.5
        shift_b = torch.randn(width, rank, generator=generator) / width**0.5
        a, b = (origin.a_RK + 0.3 * shift_a) * scale, (origin.b_DR + 0.3 * shift_b) / scale
        members.append(LoraFactors(a.to(device), b.to(device)))
    weights_U = torch.arange(1, count + 1, dtype=torch.float64)
    start = GlobalModule(factors=start_of(width, rank, device))
    return ModuleCohort.of(members, weights_U, start=start)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_time(
    work: Callable[[], object], device: torch.device, *, seconds: float = 1.0, least: int = 3
) -> float:
    """Seconds of the fastest of at least `least` calls, for about `seconds`."""
    best, spent, calls = float("inf"), 0.0, 0
    while calls < least or (spent < seconds and calls < 50):
        synchronise(device)
        begin = time.perf_counter()
        work()
        synchronise(device)
        taken = time.perf_counter() - begin
        best, spent, calls = min(best, taken), spent + taken, calls + 1
        if taken > 10:
            break
    return best


def read_all(cohort: ModuleCohort) -> list[Tensor]:
    return [part.sum() for f in cohort.members for part in (f.a_RK, f.b_DR)]


def resident(field: str) -> int:
    """Bytes of VmRSS or VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    return 0


def peak_above(work: Callable[[], object], device: torch.device) -> float:
    """MB above what was held before; NaN where the system does not say."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    before = resident("VmRSS")
    work()
    return (resident("VmHWM") - before) / 1e6


# --- the dense baselines -------------------------------------------------------------------------


def dense_ideal(cohort: ModuleCohort) -> Tensor:
    members, weights = cohort.members, cohort.weights_U.tolist()
    b = torch.cat([f.b_DR * w for f, w in zip(members, weights, strict=True)], dim=1)
    return b @ torch.cat([f.a_RK for f in members])


def dense_svd(cohort: ModuleCohort, rank: int) -> LoraFactors:
    u, s, vh = torch.linalg.svd(dense_ideal(cohort), full_matrices=False)
    root = s[:rank].sqrt()
    return LoraFactors(root[:, None] * vh[:rank], u[:, :rank] * root)


def dense_adam(cohort: ModuleCohort, steps: int = ADAM_STEPS) -> LoraFactors:
    """FLoRA-NA's scalars by a first-order method on |BA - T|^2 / |T|^2."""
    target = dense_ideal(cohort)
    a_URK = torch.stack([f.a_RK for f in cohort.members])
    b_UDR = torch.stack([f.b_DR for f in cohort.members])
    start = cohort.weights_U.to(target)
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


# --- sections of the page ------------------------------------------------------------------------


def round_of(model: Model, count: int, modules: int, device: torch.device) -> list[ModuleCohort]:
    """A round's modules, each in memory of its own: together far more than any cache."""
    first = cohort_of(model.width, model.rank, count, device)
    return [first] + [
        ModuleCohort.of(
            [LoraFactors(f.a_RK.clone(), f.b_DR.clone()) for f in first.members],
            first.weights_U,
            start=first.start,
        )
        for _ in range(modules - 1)
    ]


def made_ahead(cohort: ModuleCohort) -> ClientGrams:
    """What `gram_blocks` has ready at the close."""
    start = cohort.start
    assert start is not None
    origin = start.factors.to(torch.float64)
    drifts = [f.to(torch.float64) for f in cohort.members]
    left = [origin.b_DR, *(f.b_DR - origin.b_DR for f in drifts)]
    right = [origin.a_RK.T, *((f.a_RK - origin.a_RK).T for f in drifts)]
    ranks = tuple(f.rank for f in drifts)
    return ClientGrams(gram_matrix(left).cpu(), gram_matrix(right).cpu(), ranks)


def closed_by(method: Method, rank: int) -> Callable[[ModuleCohort], LoraFactors]:
    """What a method makes of a module."""
    recipe = compose(method)
    return lambda cohort: recipe.aggregate_module(cohort, rank=rank).factors


def whole_round(
    work: Callable[[ModuleCohort], object], cohorts: Sequence[ModuleCohort], device: torch.device
) -> float:
    """Seconds per module of a pass over the round, as the aggregator makes it."""

    def once() -> None:
        for _ in in_order(lambda cohort: work(cohort) and None, cohorts, device=device):
            pass

    return best_time(once, device, seconds=0.7, least=2) / len(cohorts)


def closing(
    rows: Sequence[tuple[Model, int, int]], device: torch.device, *, threads: int
) -> list[str]:
    """Every method over a round in memory, against reading the round once."""
    names = [*METHODS, *(f"{name}, ahead" for name in AHEAD), "certificate"]
    lines = [
        "## Closing a round",
        "",
        (
            f"Milliseconds per module over a round that lies in memory, {threads} modules at a "
            "time, in brackets the multiple of one read; then the peak of memory above the updates "
            "while `optimal` runs, in MB, beside the size of one adapter of the whole model. "
            "`flora_na` and `florist` are left out where R > d / 4: they need R x R cores, and the "
            "certificate, which has one too, is measured there on two modules. It is `optimal`'s. "
            "*ahead*: with the Gram blocks of pairs that the server computes while updates arrive."
        ),
        "",
        "| model | U | modules | read | " + " | ".join(names) + " | peak | adapter |",
        "|---|" + " ---: |" * (len(names) + 5),
    ]
    for model, count, modules in rows:
        cohorts = round_of(model, count, modules, device)
        large = model.rank * count > model.width // 4
        work: dict[str, tuple[Callable[[ModuleCohort], object], Sequence[ModuleCohort]]] = {
            "read": (read_all, cohorts)
        }
        for name, method in METHODS.items():
            if not (large and name in ("flora_na", "florist")):
                work[name] = (closed_by(method, model.rank), cohorts)
        if not large:
            ready = [dataclasses.replace(c, grams=made_ahead(c)) for c in cohorts]
            for name in AHEAD:
                work[f"{name}, ahead"] = (closed_by(METHODS[name], model.rank), ready)
        result = closed_by(METHODS["optimal"], model.rank)(cohorts[0])
        published = GlobalModule(factors=result.to(torch.float64))
        work["certificate"] = (
            lambda c, p=published: measure(c, published=p),
            cohorts[:2] if large else cohorts,
        )
        seconds = dict.fromkeys(work, math.inf)
        # One after the other, and all of it again: a neighbour's burst must not hit one of them.
        for _ in range(3):
            for name, (close, members) in work.items():
                seconds[name] = min(seconds[name], whole_round(close, members, device))
        read = seconds["read"]
        peak = peak_above(lambda w=work["optimal"]: whole_round(w[0], w[1], device), device)
        adapter = 8 * model.width * model.rank * model.modules / 1e6
        cells = [
            f"{1e3 * seconds[n]:.3g} ({seconds[n] / read:.3g}x)" if n in seconds else "–"
            for n in names
        ]
        lines.append(
            f"| {model.name} | {count} | {len(cohorts)} | {1e3 * read:.3g} | "
            + " | ".join(cells)
            + f" | {peak:.3g} | {adapter:.3g} |"
        )
        print(lines[-1], flush=True)
    return [*lines, ""]


def against_dense(model: Model, count: int, device: torch.device) -> list[str]:
    """The dense formulations on one module."""
    cohort = cohort_of(model.width, model.rank, count, device)
    centred = CentredCohort.of(cohort.members, cohort.weights_U)
    ideal = centred.ideal_norm()
    # The first optimiser of a process loads much of torch, which is not what is measured.
    dense_adam(cohort_of(64, 2, 2, device), steps=1)
    lines = [
        f"## Against the dense formulation: one module of {model.name}, U = {count}",
        "",
        "| | ms | relative error | times as fast |",
        "|---|---:|---:|---|",
    ]
    dense: dict[str, float] = {}
    work = {
        "Adam, dense": lambda: dense_adam(cohort),
        "dense SVD": lambda: dense_svd(cohort, model.rank),
    }
    for name, make in work.items():
        synchronise(device)
        begin = time.perf_counter()
        result = make()
        synchronise(device)
        dense[name] = time.perf_counter() - begin
        error = centred.error_of(result) / ideal
        lines.append(f"| {name} | {1e3 * dense[name]:,.0f} | {error:.6f} | |")
        print(lines[-1], flush=True)
    ready = dataclasses.replace(cohort, grams=made_ahead(cohort))
    measured = [(name, name, cohort) for name in METHODS]
    measured += [(f"{name}, ahead", name, ready) for name in AHEAD]
    for label, name, members in measured:
        recipe = compose(METHODS[name])
        taken = best_time(
            lambda r=recipe, c=members: r.aggregate_module(c, rank=model.rank), device
        )
        result = recipe.aggregate_module(members, rank=model.rank).factors
        error = centred.error_of(result) / ideal
        rival = "Adam, dense" if name in ("fedit", "flora_na") else "dense SVD"
        lines.append(
            f"| {label} | {1e3 * taken:.3g} | {error:.6f} | {dense[rival] / taken:,.0f} ({rival}) |"
        )
        print(lines[-1], flush=True)
    return [*lines, ""]


def growth(device: torch.device, *, quick: bool, plot: Path) -> list[str]:
    """How time grows with one size while the others rest, and the fitted exponents."""
    sweeps: dict[str, list[tuple[int, int, int]]] = {
        "U": [(1024, 8, u) for u in ((8, 16, 32) if quick else (8, 16, 32, 64, 128, 256))],
        "r": [(1024, r, 8) for r in ((4, 8, 16) if quick else (4, 8, 16, 32))],
        "d": [(d, 8, 8) for d in ((512, 1024, 2048) if quick else (512, 1024, 2048, 4096, 8192))],
    }
    lines = [
        "## Growth",
        "",
        (
            "Fitted exponents of the time of one module (d = 1024, r = 8, U = 8 where not varied). "
            "The number of modules enters as a factor: they are closed one after the other."
        ),
        "",
        "| varied | from | to | fedit | optimal |",
        "|---|---:|---:|---:|---:|",
    ]
    curves: dict[str, list[tuple[float, float]]] = {}
    for varied, rows in sweeps.items():
        exponents = []
        sizes = [row["drU".index(varied)] for row in rows]
        for name in ("fedit", "optimal"):
            recipe = compose(METHODS[name])
            times = []
            for d, r, u in rows:
                cohort = cohort_of(d, r, u, device)
                times.append(
                    best_time(
                        lambda m=recipe, c=cohort, q=r: m.aggregate_module(c, rank=q),
                        device,
                        seconds=0.5,
                    )
                )
            exponents.append(_slope(sizes, times))
            curves[f"{name}, {varied}"] = [
                (s / sizes[0], t) for s, t in zip(sizes, times, strict=True)
            ]
        lines.append(
            f"| {varied} | {sizes[0]} | {sizes[-1]} | "
            + " | ".join(f"{e:.2f}" for e in exponents)
            + " |"
        )
        print(lines[-1], flush=True)
    plot.write_text(_svg(curves), encoding="utf-8")
    return [*lines, "", f"![growth]({plot.name})", ""]


def streamed(device: torch.device, *, quick: bool) -> list[str]:
    """A cohort of files through the driver, one module in memory at a time."""
    from safetensors.torch import save_file

    from aggregator_service.aggregation.driver import Contribution, aggregate
    from fedlora.adapters.names import Factor, lora_key

    count = 100 if quick else 1000
    lines = [
        "## Streamed from files",
        "",
        (
            f"{count:,} updates as safetensors files through `driver.aggregate`; the files are in "
            "the page cache. Seconds per module; peak of memory above the files' headers, in MB."
        ),
        "",
        "| model | modules measured | method | s per module | MB | updates of one module, MB |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for model, modules in ((ROBERTA, 2), (LLAMA, 1)):
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for u in range(count):
                tensors = {}
                for i in range(modules):
                    drawn = torch.Generator().manual_seed(u * modules + i)
                    a = torch.randn(model.rank, model.width, generator=drawn)
                    b = torch.randn(model.width, model.rank, generator=drawn)
                    module = f"layers.{i}.q_proj"
                    tensors[lora_key(module, Factor.LORA_A)] = a
                    tensors[lora_key(module, Factor.LORA_B)] = b
                paths.append(Path(folder, f"{u:05}.safetensors"))
                save_file(tensors, paths[-1], metadata={"format": "pt"})
            updates = [Contribution(worker=p.stem, weight=1.0, path=p, scaling=1.0) for p in paths]
            for name in ("fedit", "optimal"):
                spent = [math.inf]

                def close(name=name, updates=updates, spent=spent) -> None:  # type: ignore[no-untyped-def]
                    begin = time.perf_counter()
                    out = Path(folder, "out.safetensors")
                    aggregate(updates, compose(METHODS[name]), output=out, device=device)
                    spent[0] = time.perf_counter() - begin

                peak = peak_above(close, device)
                size = 8 * model.width * model.rank * count / 1e6
                lines.append(
                    f"| {model.name} | {modules} | {name} | {spent[0] / modules:.3g} | "
                    f"{peak:.4g} | {size:.4g} |"
                )
                print(lines[-1], flush=True)
    return [*lines, ""]


def on_device(device: torch.device, count: int) -> list[str]:
    """A whole round of LLaMA-2-7B on the accelerator, where the updates already are."""
    modules = [cohort_of(4096, 16, count, device) for _ in range(4)]
    recipe = compose(METHODS["optimal"])

    def close() -> None:
        for cohort in modules:
            recipe.aggregate_module(cohort, rank=16)

    close()
    taken = best_time(close, device) * LLAMA.modules / len(modules)
    size = 8 * 4096 * 16 * count * LLAMA.modules
    big = torch.empty(2**28, device=device)
    bandwidth = big.numel() * 4 / best_time(lambda: big.sum(), device, least=10)
    return [
        "## Accelerator",
        "",
        (
            f"{torch.cuda.get_device_name(device)}: `optimal` on all {LLAMA.modules} modules of "
            f"LLaMA-2-7B, U = {count}, updates on the device: {1e3 * taken:.4g} ms. One read of "
            f"them at {bandwidth / 1e9:,.0f} GB/s is {1e3 * size / bandwidth:.3g} ms: "
            f"{taken * bandwidth / size:.3g} times the limit."
        ),
        "",
    ]


# --- the page ------------------------------------------------------------------------------------


def _slope(sizes: Sequence[int], times: Sequence[float]) -> float:
    x = torch.tensor([math.log(s) for s in sizes], dtype=torch.float64)
    y = torch.tensor([math.log(t) for t in times], dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x))


def _svg(curves: dict[str, list[tuple[float, float]]]) -> str:
    """Log-log lines: multiples of the smallest size against milliseconds."""
    colours = ["#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2"]
    xs = [math.log2(x) for line in curves.values() for x, _ in line]
    ys = [math.log10(1e3 * t) for line in curves.values() for _, t in line]
    low, high = math.floor(min(ys)), math.ceil(max(ys))

    def place(x: float, t: float) -> str:
        across = 60 + 380 * math.log2(x) / max(xs)
        return f"{across:.1f},{260 - 230 * (math.log10(1e3 * t) - low) / (high - low):.1f}"

    parts = [
        (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 300" '
            'font-family="sans-serif" font-size="12"><rect width="600" height="300" fill="white"/>'
        )
    ]
    for power in range(low, high + 1):
        y = 260 - 230 * (power - low) / (high - low)
        parts.append(f'<path d="M60 {y:.1f}H440" stroke="#ddd"/>')
        parts.append(f'<text x="52" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} ms</text>')
    for step in range(int(max(xs)) + 1):
        x = 60 + 380 * step / max(xs)
        parts.append(f'<text x="{x:.1f}" y="278" text-anchor="middle">{2**step}x</text>')
    for i, (name, line) in enumerate(curves.items()):
        colour = colours[i % len(colours)]
        points = " ".join(place(x, t) for x, t in line)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        parts.append(f'<text x="455" y="{40 + 20 * i}" fill="{colour}">{name}</text>')
    return "".join([*parts, "</svg>\n"])


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name = platform.machine()
    with contextlib.suppress(OSError, IndexError):
        text = Path("/proc/cpuinfo").read_text()
        models = [x for x in text.splitlines() if x.startswith("model name")]
        name = models[0].partition(":")[2].strip()
    return f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, about a minute")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    intro = " ".join((__doc__ or "").split("\n\n")[2].split())
    lines = [
        "# Closing a round",
        "",
        f"Measured by `python benchmarks/aggregation.py` on {machine(device)}. {intro}",
        "",
    ]
    quick = given.quick
    rows = [(ROBERTA, 10, 48), (LLAMA, 10, 16)]
    if not quick:
        rows = [(ROBERTA, 10, 48), (ROBERTA, 100, 48), (LLAMA, 10, 64), (LLAMA, 100, 16)]
    lines += closing(rows, device, threads=given.threads)
    lines += against_dense(ROBERTA if quick else LLAMA, 10, device)
    lines += growth(device, quick=quick, plot=given.out.with_suffix(".svg"))
    if device.type == "cuda":
        lines += on_device(device, 10 if quick else 100)
    else:
        lines += streamed(device, quick=quick)
        lines += ["No accelerator was used: run with `--device cuda` for its rows.", ""]
    given.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
