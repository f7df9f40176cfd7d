"""One thread of torch a test process: two of them share two cores, and sums stay in one order."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
