from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from aggregator_service import failpoints
from aggregator_service.failpoints import Armed, Failpoint, parse


def test_nothing_is_armed_in_production():
    assert failpoints.ARMED == {}
    assert failpoints.reach is failpoints._nothing


def test_a_rule_names_point_action_first_passage_and_count():
    assert parse("renamed=kill@3, committed=ENOSPC@2x5,header_read=pause") == {
        Failpoint.RENAMED: Armed(action="kill", first=3),
        Failpoint.COMMITTED: Armed(action="ENOSPC", first=2, count=5),
        Failpoint.HEADER_READ: Armed(action="pause"),
    }


@pytest.mark.parametrize("rule", ["renamed", "renamed=die", "nowhere=kill", "renamed=kill@x"])
def test_a_rule_that_is_none_is_refused_with_its_text(rule: str):
    with pytest.raises(ValueError, match=rule.split("=")[0]):
        parse(rule)


def test_the_passages_named_fail_and_no_other():
    reach = failpoints._armed(parse("committed=ENOSPC@2x2"))
    outcomes = []
    for _ in range(5):
        reach(Failpoint.RENAMED)
        try:
            reach(Failpoint.COMMITTED)
            outcomes.append(0)
        except OSError as error:
            outcomes.append(error.errno)
    assert outcomes == [0, errno.ENOSPC, errno.ENOSPC, 0, 0]


def test_a_process_dies_by_sigkill_where_its_environment_says():
    program = (
        "from aggregator_service.failpoints import Failpoint, reach\n"
        "reach(Failpoint.RENAMED); print('once', flush=True); reach(Failpoint.RENAMED); print('no')"
    )
    environment = {**os.environ, failpoints.VARIABLE: "renamed=kill@2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (-9, b"once\n")
