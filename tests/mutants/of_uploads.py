"""When an upload is an update, and whose it is."""

from __future__ import annotations

from mutants.mutant import Mutant

__all__ = ["UPLOADS"]

_RPCS = "tests/integration/test_federation_rpcs.py::"
_AGAIN = "tests/integration/test_updates_sent_again.py::"
_BLOBS = "tests/unit/aggregator_service/store/test_blobs.py::"
_WRITER = "tests/unit/aggregator_service/store/test_upload_writer.py::"
_SESSIONS = "tests/unit/aggregator_service/test_sessions.py::"

UPLOADS = (
    Mutant(
        name="commit_on_end_of_stream",
        sentence="an upload is committed because the stream ended",
        file="aggregator_service/uploads.py",
        old=(
            "        raise FedLoraError(\n"
            "            Reason.UPLOAD_INCOMPLETE,\n"
            '            f"the stream ended after {writer.offset}'
        ),
        new=(
            "        if writer.offset == header.total_bytes:\n"
            "            return Commit(header.total_bytes, writer._digest.digest())\n"
            "        raise FedLoraError(\n"
            "            Reason.UPLOAD_INCOMPLETE,\n"
            '            f"the stream ended after {writer.offset}'
        ),
        killers=(
            _RPCS + "test_a_stream_that_ends_after_the_last_byte_without_a_commit_is_no_update",
        ),
    ),
    Mutant(
        name="digest_not_compared",
        sentence="an upload becomes a blob whatever digest its commit names",
        file="aggregator_service/store/upload_writer.py",
        old="if found != digest or total_bytes != self._total:",
        new="if total_bytes != self._total:",
        killers=(
            _BLOBS + "test_other_bytes_than_the_commit_names_never_become_a_blob",
            _RPCS + "test_bytes_that_are_not_the_manifest_leave_nothing_behind",
        ),
    ),
    Mutant(
        name="finite_check_skipped",
        sentence="an update of NaN is taken",
        file="fedlora/tensors/verifier.py",
        old="if dtype not in _BITS or _BITS[dtype].all_finite(block):",
        new="if True:",
        killers=(
            _WRITER + "test_wrong_bytes_end_the_upload_and_free_its_key",
            _RPCS + "test_bytes_that_are_not_the_manifest_leave_nothing_behind",
        ),
    ),
    Mutant(
        name="any_size_taken",
        sentence="an update may declare any size",
        file="aggregator_service/uploads.py",
        old="if not 0 < header.total_bytes <= limits.max_update_bytes:",
        new="if False:",
        killers=(_RPCS + "test_a_header_that_is_not_what_was_asked_for_is_refused",),
    ),
    Mutant(
        name="no_idle_timeout",
        sentence="a stream that falls silent keeps its place for ever",
        file="aggregator_service/pace.py",
        old="asyncio.timeout_at(now if self._given_up else first)",
        new="asyncio.timeout_at(None)",
        killers=(_RPCS + "test_a_silent_upload_is_given_up_and_kept_for_resuming",),
    ),
    Mutant(
        name="replay_of_other_bytes",
        sentence="other bytes under a known key get the acknowledgement of the first ones",
        file="aggregator_service/replay.py",
        old="if digest.digest() == message.digest == bytes.fromhex(known.digest):",
        new="if True:",
        killers=(_RPCS + "test_a_key_never_stands_for_two_contents",),
    ),
    Mutant(
        name="replay_believes_the_commit",
        sentence="a replay is judged by the digest that it names, not by its bytes",
        file="aggregator_service/replay.py",
        old="if digest.digest() == message.digest == bytes.fromhex(known.digest):",
        new="if message.digest == bytes.fromhex(known.digest):",
        killers=(
            _RPCS + "test_an_acknowledgement_is_not_given_again_for_bytes_that_were_not_sent_again",
        ),
    ),
    Mutant(
        name="replay_from_the_start_only",
        sentence="what is sent again from the middle is taken for other bytes",
        file="aggregator_service/replay.py",
        old="    offset = header.start_offset\n",
        new="    offset = 0\n",
        killers=(_AGAIN + "test_what_is_sent_again_may_begin_anywhere",),
    ),
    Mutant(
        name="two_streams_write_one_file",
        sentence="a second stream of an upload writes into the file of the first",
        file="aggregator_service/store/blobs.py",
        old="if path in self._open:",
        new="if False:",
        killers=(
            _BLOBS + "test_an_upload_is_written_by_one_stream_at_a_time",
            _WRITER + "test_of_many_streams_of_one_upload_one_gets_it",
        ),
    ),
    Mutant(
        name="prefix_not_verified_again",
        sentence="what a partial file holds after a restart is believed unread",
        file="aggregator_service/store/upload_writer.py",
        old=(
            "                self._verifier.feed(data)\n"
            "                self._digest.update(data)\n"
            "        except FedLoraError:"
        ),
        new="        except FedLoraError:",
        killers=(
            _BLOBS + "test_a_partial_file_that_is_no_beginning_of_the_upload_is_begun_anew",
            _BLOBS + "test_an_upload_cut_anywhere_goes_on_there_even_after_a_restart",
        ),
    ),
    Mutant(
        name="stale_token_trusted",
        sentence="a process that was replaced goes on in the name of its worker",
        file="aggregator_service/sessions.py",
        old="if hmac.compare_digest(record.session_hash, token.digest):",
        new=(
            "if hmac.compare_digest(record.session_hash, token.digest) or (\n"
            "        token.epoch < record.epoch\n"
            "    ):"
        ),
        killers=(
            _SESSIONS + "test_an_older_session_is_fenced_and_a_forged_one_unknown",
            _RPCS + "test_a_newer_process_fences_the_older_one_and_keeps_its_place",
        ),
    ),
    Mutant(
        name="forged_token_trusted",
        sentence="whoever knows a worker's name and epoch may speak for it",
        file="aggregator_service/sessions.py",
        old="if hmac.compare_digest(record.session_hash, token.digest):",
        new="if token.epoch == record.epoch:",
        killers=(
            _SESSIONS + "test_an_older_session_is_fenced_and_a_forged_one_unknown",
            _RPCS + "test_a_retried_registration_of_one_process_fences_nobody",
        ),
    ),
)
