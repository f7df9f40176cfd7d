"""What the updates come to, and what a worker keeps and sends of them."""

from __future__ import annotations

from mutants.mutant import Mutant

__all__ = ["RESULTS"]

_DRIVER = "tests/unit/aggregator_service/aggregation/test_driver.py::"
_RPCS = "tests/integration/test_federation_rpcs.py::"
_LATE = "tests/unit/aggregator_service/aggregation/test_stale_updates.py::"
_CLIENT = "tests/unit/client_worker/transport/test_client.py::"
_OUTBOX = "tests/unit/client_worker/test_outbox.py::"
_RUNNER = "tests/unit/client_worker/test_runner.py::"
_NORMS = "tests/unit/aggregator_service/aggregation/test_change_norms.py::"
_PLUGIN = "tests/unit/fedlora/plugins/test_norm_bound.py::"
_BOUND = "tests/integration/test_norm_bound_over_grpc.py::"

_CUT_UPLOAD = _CLIENT + "test_a_cut_upload_goes_on_where_the_server_holds_it"

RESULTS = (
    Mutant(
        name="sums_in_order_of_arrival",
        sentence="the same updates give other bytes when they arrive in another order",
        file="aggregator_service/aggregation/cohort_files.py",
        old="sorted((c for c in contributions if c.weight > 0), key=lambda c: c.worker)",
        new="c for c in contributions if c.weight > 0",
        killers=(
            _DRIVER + "test_arrival_order_and_absent_workers_change_no_byte",
            _RPCS + "test_arrival_order_changes_no_bit_of_the_result",
        ),
    ),
    Mutant(
        name="staleness_ignored",
        sentence="a late update counts as much as a fresh one",
        file="aggregator_service/aggregation/stale_updates.py",
        old="return self.mixing * math.pow(1 + staleness, -self.exponent)",
        new="return self.mixing",
        killers=(
            _LATE + "test_the_discount_is_one_for_nobody_late_and_never_rises",
            _LATE + "test_a_late_update_counts_as_its_change_with_less_weight",
        ),
    ),
    Mutant(
        name="rebase_left_out",
        sentence="a late update undoes what the rounds since have changed",
        file="aggregator_service/aggregation/stale_updates.py",
        old="if update.staleness and discount.rebases and member.weight > 0:",
        new="if False:",
        killers=(
            _LATE + "test_a_late_update_counts_as_its_change_with_less_weight",
            _LATE + "test_where_components_are_kept_the_factors_change_by_what_the_worker_changed",
        ),
    ),
    Mutant(
        name="resumed_after_what_was_sent",
        sentence="a cut upload goes on after what was sent, not after what has arrived",
        file="client_worker/transport/client.py",
        old="start = status.durable_bytes if status.durable_bytes <= payload.total_bytes else 0",
        new="start = payload.total_bytes if status.durable_bytes else 0",
        killers=(_CUT_UPLOAD + "[StatusCode.UNAVAILABLE-129]",),
    ),
    Mutant(
        name="streams_retried_by_grpc",
        sentence="gRPC itself retries uploads, and loses messages of them",
        file="fedlora/rpc/channel.py",
        old='_IDEMPOTENT_METHODS = (\n    "Register",',
        new='_IDEMPOTENT_METHODS = (\n    "PushUpdate",\n    "Register",',
        killers=(_CLIENT + "test_no_retry_policy_stands_on_a_call_that_must_not_run_twice",),
    ),
    Mutant(
        name="outbox_forgotten",
        sentence="a restarted worker trains again what it had trained",
        file="client_worker/outbox.py",
        old='            temporary.replace(self._folder / "update.json")\n',
        new="",
        killers=(
            _OUTBOX + "test_an_update_comes_back_with_the_same_bytes_and_facts",
            _RUNNER + "test_a_restarted_worker_submits_what_it_had_trained",
        ),
    ),
    Mutant(
        name="outbox_not_verified",
        sentence="a restarted worker submits an update whose bits have changed on its disk",
        file="client_worker/outbox.py",
        old="return update if intact else None",
        new="return update",
        killers=(_OUTBOX + "test_a_flipped_bit_is_found_and_the_update_trained_again",),
    ),
    Mutant(
        name="change_measured_from_zero",
        sentence="a bound cuts what an adapter holds, and not what an update changes",
        file="aggregator_service/aggregation/cohort_files.py",
        old="squares[u].append(float((file.tensor(key) - given[rank]).square().sum()))",
        new="squares[u].append(float(file.tensor(key).square().sum()))",
        killers=(
            _NORMS + "test_by_hand_over_both_factors_and_what_is_trained_in_full[4]",
            _BOUND + "test_one_hostile_update_among_five[True]",
        ),
    ),
    Mutant(
        name="stretched_beyond_the_bound",
        sentence="what another plug-in makes of an update escapes the bound",
        file="aggregator_service/aggregation/composition.py",
        old="changes = [measured[u] * c for u, c in zip(present, product, strict=True)]",
        new="changes = [measured[u] for u in present]",
        killers=(_PLUGIN + "test_what_another_plug_in_stretches_is_bounded_as_stretched[1]",),
    ),
)
