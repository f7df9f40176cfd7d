"""Bugs of access: somebody does what is not his to do, or learns what is not his to know."""

from __future__ import annotations

from mutants.mutant import Mutant

__all__ = ["ACCESS"]

_ACCESS = "tests/integration/test_access.py::"
_REFUSALS = "tests/integration/test_refusals.py::"
_ENROLMENT = "tests/integration/test_enrolment.py::"
_CALLERS = "tests/unit/aggregator_service/transport/test_callers.py::"
_CERTIFICATES = "tests/unit/fedlora/identity/test_certificates.py::"
_SWAP = "tests/unit/fedlora/identity/test_swap.py::"
_SECURITY = "tests/integration/test_server_security.py::"

ACCESS = (
    Mutant(
        name="any_role_will_do",
        sentence="whoever is a member may call everything",
        file="aggregator_service/transport/guard.py",
        old="if caller.role not in access:",
        new="if not access:",
        killers=(_ACCESS + "test_a_role_may_call_what_the_table_says_and_nothing_else",),
    ),
    Mutant(
        name="streams_checked_once",
        sentence="a stream goes on after its caller was revoked",
        file="aggregator_service/transport/guard.py",
        old="if caller is not None and (why := self._callers.refusal(caller)):",
        new="if caller is not None and (why := ''):",
        killers=(
            _ACCESS + "test_an_upload_ends_when_its_worker_is_revoked[Certificates]",
            _ACCESS + "test_who_watches_is_cut_off_when_revoked[BearerTokens]",
        ),
    ),
    Mutant(
        name="sessions_are_anybodys",
        sentence="a worker uses the session of another",
        file="aggregator_service/worker_calls.py",
        old="        check_is_worker(parsed.worker)\n",
        new="",
        killers=(_ACCESS + "test_a_worker_acts_as_itself_only",),
    ),
    Mutant(
        name="names_are_anybodys",
        sentence="a worker registers under the name of another",
        file="aggregator_service/worker_calls.py",
        old="        check_is_worker(name)\n",
        new="",
        killers=(_ACCESS + "test_a_worker_acts_as_itself_only",),
    ),
    Mutant(
        name="certificates_never_end",
        sentence="a certificate that has ended is good while its connection stands",
        file="aggregator_service/transport/callers.py",
        old='            return "expired"\n',
        new='            return ""\n',
        killers=(
            _CALLERS + "test_a_certificate_ends_while_its_connection_stands",
            _REFUSALS
            + "test_who_is_nobody_any_longer_may_call_nothing_on_a_standing_connection"
            + "[Certificates-expired]",
        ),
    ),
    Mutant(
        name="tokens_redeemed_again",
        sentence="a join token is good more than once",
        file="aggregator_service/store/members.py",
        old="WHERE token_digest = ? AND key_digest = ''",
        new="WHERE token_digest = ?",
        killers=(_ENROLMENT + "test_of_fifty_that_redeem_one_token_one_is_certified",),
    ),
    Mutant(
        name="tokens_never_end",
        sentence="a join token is good after its time",
        file="aggregator_service/enrolment.py",
        old="if invitation.expires_at <= self._wall():",
        new="if invitation.expires_at <= 0:",
        killers=(
            _ENROLMENT + "test_a_token_that_is_not_good_is_refused_and_nothing_says_why[expired]",
        ),
    ),
    Mutant(
        name="revocations_forgotten",
        sentence="a server that starts again knows of no revocation",
        file="aggregator_service/app.py",
        old="            await self.enrolment.open()\n",
        new="",
        killers=(_ENROLMENT + "test_a_revocation_outlives_a_restart",),
    ),
    Mutant(
        name="workers_serve",
        sentence="a worker's certificate is good for posing as the server",
        file="fedlora/identity/certificates.py",
        old="if serves else ExtendedKeyUsageOID.CLIENT_AUTH",
        new="if serves else ExtendedKeyUsageOID.SERVER_AUTH",
        killers=(
            _CERTIFICATES
            + "test_only_a_servers_certificate_is_good_for_serving_and_none_for_signing[worker]",
            _SECURITY + "test_a_worker_cannot_pose_as_the_server",
        ),
    ),
    Mutant(
        name="plain_text_by_accident",
        sentence="a server without identities is reached from other machines",
        file="aggregator_service/transport/server.py",
        old="        check_exposure(config)\n",
        new="",
        killers=(_SECURITY + "test_plain_text_beyond_this_machine_is_served_only_when_asked_for",),
    ),
    Mutant(
        name="identity_swapped_by_halves",
        sentence="who is killed while it renews is left with the new key and the old certificate",
        file="fedlora/identity/swap.py",
        old="    writing.rename(folder / _NEXT)\n",
        new="    for name in contents:\n        (writing / name).replace(folder / name)\n",
        killers=(_SWAP + "test_who_is_killed_at_any_step_leaves_the_old_identity_or_the_new",),
    ),
    Mutant(
        name="key_of_an_enrolment_forgotten",
        sentence="who is killed while it enrols needs another invitation",
        file="client_worker/transport/enrolment.py",
        old="    replace_files(folder, {name: key_to_pem(key)})\n",
        new="",
        killers=(
            _ENROLMENT + "test_who_is_killed_before_the_answer_enrols_with_the_same_invitation",
        ),
    ),
)
