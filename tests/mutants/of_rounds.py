"""Who counts in which round, and how long a round and a server wait."""

from __future__ import annotations

from mutants.mutant import Mutant

__all__ = ["ROUNDS"]

_STRAGGLERS = "tests/unit/aggregator_service/rounds/test_stragglers.py::"
_MACHINE = "tests/unit/aggregator_service/rounds/test_machine.py::"
_ACTOR = "tests/unit/aggregator_service/test_run_actor.py::"
_DRAIN = "tests/faults/test_drain.py::"
_STREAMS = "tests/unit/aggregator_service/transport/test_open_streams.py::"
_KEEP_ALIVE = "tests/integration/test_keep_alive.py::"

ROUNDS = (
    Mutant(
        name="late_update_in_the_closed_round",
        sentence="an update that comes after the close counts in the closed round",
        file="aggregator_service/rounds/machine.py",
        old="counts_in = state.round if state.phase is _P.TRAINING else state.round + 1",
        new="counts_in = state.round",
        killers=(_STRAGGLERS + "test_a_carried_update_counts_once_and_in_the_next_round_only",),
    ),
    Mutant(
        name="late_update_not_dropped",
        sentence="an update that comes after the close counts where late ones are to be dropped",
        file="aggregator_service/rounds/tasks_in_hand.py",
        old="counts = rules.counts_late_updates and state.round < rules.num_rounds",
        new="counts = state.round < rules.num_rounds",
        killers=(_STRAGGLERS + "test_a_dropped_late_update_has_no_effect",),
    ),
    Mutant(
        name="worker_counts_twice",
        sentence="a worker that has submitted may submit again in the same round",
        file="aggregator_service/rounds/machine.py",
        old="assigned={other: a for other, a in state.assigned.items() if other != name},",
        new="assigned=state.assigned,",
        killers=(
            _MACHINE + "test_a_second_update_of_a_worker_or_one_of_another_round_changes_nothing",
        ),
    ),
    Mutant(
        name="closed_below_quorum",
        sentence="at its deadline a round closes below quorum",
        file="aggregator_service/rounds/machine.py",
        old="if len(state.updates) >= quorum:",
        new="if state.updates:",
        killers=(_MACHINE + "test_below_quorum_the_deadline_is_extended_and_newcomers_stand_in",),
    ),
    Mutant(
        name="the_lost_are_waited_for",
        sentence="a round with its quorum waits for a worker that is lost",
        file="aggregator_service/rounds/tasks_in_hand.py",
        old=(
            "        task.round == state.round and state.is_expected(name)\n"
            "        for name, task in state.assigned.items()"
        ),
        new="        task.round == state.round for task in state.assigned.values()",
        killers=(
            _MACHINE + "test_with_a_quorum_nobody_waits_for_a_worker_that_is_lost_or_has_left",
            _STRAGGLERS + "test_a_round_closes_as_soon_as_its_rule_is_met_however_many_die",
        ),
    ),
    Mutant(
        name="wall_clock_deadlines",
        sentence="deadlines follow the wall clock and its jumps",
        file="aggregator_service/run_actor.py",
        old="self._clock = RunClock(clock_base, monotonic)",
        new="self._clock = RunClock(clock_base, wall)",
        killers=(_ACTOR + "test_a_jump_of_the_wall_clock_moves_no_deadline",),
    ),
    Mutant(
        name="clock_starts_anew",
        sentence="after a restart a run's clock shows the host's uptime, and deadlines move",
        file="aggregator_service/clock.py",
        old="return self.base + (self.monotonic() - self._origin)",
        new="return self.monotonic()",
        killers=(_ACTOR + "test_a_deadline_survives_a_restart_as_the_time_that_was_left",),
    ),
    Mutant(
        name="aggregation_forgotten",
        sentence="a server restarted in mid-aggregation does not know that it has to aggregate",
        file="aggregator_service/rounds/machine.py",
        old="    if state.phase is _P.AGGREGATING:\n        return (Aggregate(state.round),)\n",
        new="",
        killers=(
            _MACHINE + "test_a_restarted_server_repeats_exactly_the_effect_that_was_pending",
            _ACTOR + "test_a_server_that_comes_back_in_mid_aggregation_aggregates_again",
        ),
    ),
    Mutant(
        name="effects_not_repeated",
        sentence="a server restarted in mid-aggregation knows that it has to, and does not",
        file="aggregator_service/run_actor.py",
        old="for effect in pending_effects(self._state):",
        new="for effect in pending_effects(self._state)[:0]:",
        killers=(_ACTOR + "test_a_server_that_comes_back_in_mid_aggregation_aggregates_again",),
    ),
    Mutant(
        name="progress_queue_without_a_bound",
        sentence="a watcher that does not read fills the server's memory",
        file="aggregator_service/progress_feed.py",
        old="asyncio.Queue(maxsize=256)",
        new="asyncio.Queue()",
        killers=(
            _ACTOR + "test_a_watcher_that_does_not_read_misses_the_oldest_and_costs_no_memory",
        ),
    ),
    Mutant(
        name="long_polls_outlast_sigterm",
        sentence="a server that is told to end waits for workers that wait for it",
        file="aggregator_service/coordinator.py",
        old=(
            "        self._draining = True\n"
            "        for actor in self._runs.values():\n"
            "            actor.wake()\n"
        ),
        new="        return\n",
        killers=(_DRAIN + "test_an_upload_in_flight_ends_well_while_those_who_wait_are_sent_away",),
    ),
    Mutant(
        name="heartbeats_outlast_sigterm",
        sentence="a server that is told to end waits for its workers' streams of heartbeats",
        file="aggregator_service/transport/server.py",
        old="        self._streams.end()\n",
        new="",
        killers=(_DRAIN + "test_nobody_waits_for_heartbeats",),
    ),
    Mutant(
        name="silent_streams_kept",
        sentence="the stream of a worker that has vanished holds its place for ever",
        file="aggregator_service/transport/open_streams.py",
        old="if stream.heard_at <= latest:",
        new="if False:",
        killers=(
            _STREAMS + "test_a_silent_stream_ends_and_one_that_is_heard_stays",
            _KEEP_ALIVE + "test_an_open_stream_that_is_silent_is_no_sign_of_life_and_ends",
        ),
    ),
)
