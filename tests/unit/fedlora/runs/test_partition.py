import math

import pytest

from fedlora.errors import FedLoraError, Reason
from fedlora.runs.partition import PartitionScheme, PartitionSpec


# Of an infinite one a worker would draw for ever.
@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_a_concentration_that_no_share_can_be_drawn_of_is_refused(alpha: float):
    with pytest.raises(FedLoraError, match=r"dirichlet_alpha must be positive and finite") as info:
        PartitionSpec(num_slots=2, dirichlet_alpha=alpha)
    assert info.value.reason is Reason.INVALID_ARGUMENT
    PartitionSpec(scheme=PartitionScheme.IID, num_slots=2, dirichlet_alpha=alpha)
