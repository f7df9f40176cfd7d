"""What is on the disk before anybody is told, and what happens when the disk refuses."""

from __future__ import annotations

from mutants.mutant import Mutant

__all__ = ["DURABILITY"]

_WRITER = "tests/unit/aggregator_service/store/test_upload_writer.py::"
_SQLITE = "tests/unit/aggregator_service/store/test_sqlite.py::"
_ORDER = "tests/faults/test_durability_order.py::"
_ACTOR = "tests/unit/aggregator_service/test_run_actor.py::"
_LAWS = "tests/laws/test_store_laws.py::TestUpdates::"
_FILES = "tests/laws/test_store_laws.py::TestFiles::"
_SERVERS = "tests/faults/test_two_servers.py::"
_CORRUPT = "tests/faults/test_corrupt_state.py::"
_DISK = "tests/unit/aggregator_service/test_disk_watch.py::"
_BLOBS = "tests/unit/aggregator_service/store/test_blobs.py::"
_SWEEPER = "tests/unit/aggregator_service/test_sweeper.py::"

DURABILITY = (
    Mutant(
        name="blob_not_synced",
        sentence="a blob is named and acknowledged while its bytes are in memory only",
        file="aggregator_service/store/upload_writer.py",
        old="sync_file(handle)",
        new="pass",
        killers=(_WRITER + "test_a_blob_is_synced_then_renamed_then_its_folder_is_synced",),
    ),
    Mutant(
        name="folder_not_synced",
        sentence="a blob is acknowledged while its name is in memory only",
        file="aggregator_service/store/files.py",
        old="    sync_folder(target.parent)\n    reach(Failpoint.FOLDER_SYNCED)",
        new="    reach(Failpoint.FOLDER_SYNCED)",
        killers=(
            _WRITER + "test_a_blob_is_synced_then_renamed_then_its_folder_is_synced",
            _WRITER + "test_an_adopted_file_becomes_a_blob_in_the_same_order",
        ),
    ),
    Mutant(
        name="renamed_before_the_sync",
        sentence="a blob has its name before it has its bytes",
        file="aggregator_service/store/upload_writer.py",
        old=(
            "sync_file(handle)\n"
            "                    rename_durably(self._path, self._blob_path(found))"
        ),
        new=(
            "rename_durably(self._path, self._blob_path(found))\n"
            "                    sync_file(handle)"
        ),
        killers=(_WRITER + "test_a_blob_is_synced_then_renamed_then_its_folder_is_synced",),
    ),
    Mutant(
        name="failed_sync_trusted",
        sentence="a partial file is resumed although its fsync has failed",
        file="aggregator_service/store/upload_writer.py",
        old="            except OSError:\n                self._remove()",
        new="            except OSError:\n                pass",
        killers=(_WRITER + "test_a_partial_file_that_could_not_be_synced_is_never_resumed",),
    ),
    Mutant(
        name="commits_not_synced",
        sentence="a transaction is committed without waiting for the disk",
        file="aggregator_service/store/sqlite.py",
        old="PRAGMA synchronous = FULL",
        new="PRAGMA synchronous = NORMAL",
        killers=(_SQLITE + "test_every_commit_is_synced_not_only_written",),
    ),
    Mutant(
        name="acknowledged_before_the_commit",
        sentence="the worker is answered while the update is still being stored",
        file="aggregator_service/run_actor.py",
        old="return await asyncio.shield(applied)",
        new="return step(self._state, event, self.now())",
        killers=(_ORDER + "test_an_update_is_durable_before_it_is_acknowledged[None]",),
    ),
    Mutant(
        name="memory_before_the_disk",
        sentence="a step counts in memory although it could not be stored",
        file="aggregator_service/run_actor.py",
        old=(
            "        await self._store.call(lambda s: s.commit(transaction))\n"
            "        self._telemetry.committed(self._monotonic() - began)\n"
            "        self._state = state"
        ),
        new=(
            "        self._state = state\n"
            "        await self._store.call(lambda s: s.commit(transaction))\n"
            "        self._telemetry.committed(self._monotonic() - began)"
        ),
        killers=(_ACTOR + "test_a_step_that_could_not_be_stored_has_not_happened",),
    ),
    Mutant(
        name="no_unique_worker_in_a_round",
        sentence="the database takes two updates of a worker in one round",
        file="aggregator_service/store/migrations.py",
        old="            UNIQUE (run_id, round, worker),\n",
        new="",
        killers=(_LAWS + "test_an_update_counts_once[sqlite-same worker and round]",),
    ),
    Mutant(
        name="no_unique_idempotency_key",
        sentence="the database takes two updates under one key",
        file="aggregator_service/store/migrations.py",
        old=(
            "            UNIQUE (run_id, round, worker),\n"
            "            UNIQUE (run_id, idempotency_key)\n"
        ),
        new="            UNIQUE (run_id, round, worker)\n",
        killers=(
            _LAWS + "test_an_update_counts_once[sqlite-same key]",
            _LAWS + "test_twins_in_one_transaction_are_refused_too[sqlite]",
        ),
    ),
    Mutant(
        name="fenced_server_commits",
        sentence="a server that another one has replaced may still commit",
        file="aggregator_service/store/sqlite.py",
        old="            self._check_epoch()\n",
        new="",
        killers=(
            _SQLITE + "test_a_server_that_was_replaced_writes_nothing_more",
            _SERVERS + "test_an_upload_to_a_replaced_server_leaves_no_row",
        ),
    ),
    Mutant(
        name="damaged_blobs_aggregated",
        sentence="a blob whose bits have changed on the disk becomes part of an adapter",
        file="aggregator_service/stored_versions.py",
        old="        self._blobs.verify(digest)\n",
        new="",
        killers=(_CORRUPT + "test_of_200_bits_none_is_ever_aggregated",),
    ),
    Mutant(
        name="full_disk_ends_the_run",
        sentence="what a full disk refuses is given up at once",
        file="aggregator_service/disk_watch.py",
        old="if error.reason not in DISK_REFUSES:",
        new="if True:",
        killers=(_DISK + "test_what_the_disk_refuses_is_tried_again_until_it_is_taken",),
    ),
    Mutant(
        name="swept_before_its_name",
        sentence="a sweep takes a blob that the next transaction will name",
        file="aggregator_service/store/blobs.py",
        old="            self.pin(digest)\n            try:",
        new="            self._pins[digest] += 1\n            try:",
        killers=(_BLOBS + "test_what_is_made_or_read_while_a_sweep_asks_stays",),
    ),
    Mutant(
        name="pins_ignored",
        sentence="a sweep takes a copy that a worker is reading",
        file="aggregator_service/store/blobs.py",
        old="self._doomed = listed - self._pins.keys()",
        new="self._doomed = listed",
        killers=(_BLOBS + "test_a_sweep_takes_what_is_neither_named_nor_pinned",),
    ),
    Mutant(
        name="dropped_uncertified",
        sentence="updates go before their round's certificate has read them",
        file="aggregator_service/sweeper.py",
        old=" and r not in waiting]",
        new="]",
        killers=(_SWEEPER + "test_updates_go_with_their_rounds_certificate_and_versions_stay",),
    ),
    Mutant(
        name="memory_dropped_with_its_version",
        sentence="what a server optimiser remembered goes while a certificate still needs it",
        file="aggregator_service/store/named_blobs.py",
        old="AND round < :oldest",
        new="AND round <= :oldest",
        killers=(_FILES + "test_a_round_that_waits_keeps_what_it_was_built_on",),
    ),
    Mutant(
        name="swept_by_a_replaced_server",
        sentence="a server that was replaced deletes what its successor has not named yet",
        file="aggregator_service/store/sqlite.py",
        old="        self._check_epoch()\n        return named_blobs",
        new="        return named_blobs",
        killers=(_SQLITE + "test_a_server_that_was_replaced_writes_nothing_more",),
    ),
)
