"""How far the randomised core is from the least error there is."""

from __future__ import annotations

import torch
from aggregations.aims import Aim, Section
from aggregations.cohorts import best_time, cohort_of, unrelated_of

from fedlora.adapters.stacked import block_product
from fedlora.numerics import gram_core_values, product_norm, randomised_svd


def randomised_excess(device: torch.device, *, quick: bool) -> Section:
    """Error and estimate of the randomised core, with and without a flat tail."""
    worst = 0.0
    sizes = [(1024, 8, 100)] if quick else [(512, 8, 70), (1024, 8, 100), (4096, 16, 100)]
    lines = [
        "## The randomised core",
        "",
        (
            "One module, R > d / 4: error of rank r over Eckart and Young's, minus 1, and the "
            "norm of what is left as it was estimated over what it is, minus 1. *Near a start*: "
            "as above; *unrelated*: clients with nothing in common, whose spectrum is flat."
        ),
        "",
        "| d | r | U | cohort | ms | excess | estimate |",
        "|---:|---:|---:|---|---:|---:|---:|",
    ]
    for d, r, count in sizes:
        for name, cohort in (
            ("near a start", cohort_of(d, r, count, device)),
            ("unrelated", unrelated_of(d, r, count, device)),
        ):
            product = block_product(cohort.stack())
            svd = randomised_svd(product, rank=r)
            taken = best_time(lambda p=product, q=r: randomised_svd(p, rank=q), device)
            weights_R = product.component_weights
            values = gram_core_values(product.gram_b(), product.gram_a(), weights_R)
            least = float(torch.linalg.vector_norm(values[r : min(product.shape)]))
            stack = cohort.stack()
            error = product_norm(
                torch.cat([stack.b_DR, -svd.left_DQ * svd.values_N[: svd.rank]], dim=1),
                torch.cat([stack.a_RK, svd.right_QK]),
            )
            estimate = svd.tail_norm(r) / least - 1
            worst = max(worst, error / least - 1)
            lines.append(
                f"| {d} | {r} | {count} | {name} | {1e3 * taken:.3g} | {error / least - 1:.1e} | "
                f"{estimate:+.1%} |"
            )
            print(lines[-1], flush=True)
    aim = Aim("excess of the randomised core over Eckart and Young", "1e-3 at most", f"{worst:.1e}")
    return [*lines, ""], [aim]
