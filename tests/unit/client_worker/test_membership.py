import threading

import pytest
from support.fake_federation import FakeFederation, Fault, run_spec
from support.tiny_trainer import LAYOUT

from client_worker.membership import Membership, assignment_of
from client_worker.transport.client import FederationClient
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import Capabilities, Directive


@pytest.fixture
def joined():
    with FakeFederation() as server, FederationClient(server.address) as client:
        membership = Membership(client, name="w", run_name="", capabilities=Capabilities())
        registration = membership.register()
        membership.confirm(assignment_of(registration), LAYOUT)
        yield server, client, membership


def test_many_threads_that_find_the_session_unknown_register_again_once(joined):
    server, client, membership = joined
    server.forget_sessions()
    ready, answers = threading.Barrier(8), []

    def beat() -> None:
        ready.wait(10)
        answers.append(membership.with_session(lambda token: client.heartbeat(token, "t")))

    threads = [threading.Thread(target=beat) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [Directive.CONTINUE] * 8
    assert server.count("Register") == 2
    assert server.layouts == [LAYOUT, LAYOUT]


def test_the_adapter_is_confirmed_anew_before_anybody_uses_the_new_session(joined):
    server, client, membership = joined
    server.forget_sessions()
    membership.with_session(lambda token: client.heartbeat(token, "t"))
    names = [name for name, _ in server.calls]
    assert names[-4:] == ["KeepAlive", "Register", "ConfirmAdapter", "KeepAlive"]


def test_another_run_is_not_told_of_the_old_runs_adapter(joined):
    server, client, membership = joined
    server.run = run_spec("other")
    server.forget_sessions()
    membership.with_session(lambda token: client.heartbeat(token, "t"))
    assert server.count("ConfirmAdapter") == 1
    assert membership.registration.run.name == "other"


def test_a_token_that_we_replaced_ourselves_does_not_fence_us(joined):
    server, client, membership = joined
    old = membership.registration.session_token
    calls = []

    def call(token: str) -> str:
        calls.append(token)
        if len(calls) == 1:
            # What the server says of `old` once the other thread has registered again.
            server.forget_sessions()
            membership.with_session(lambda t: client.heartbeat(t, ""))
            raise FedLoraError(Reason.SESSION_FENCED, "a newer process")
        return "done"

    assert membership.with_session(call) == "done"
    assert calls == [old, membership.registration.session_token]


def test_a_newer_process_fences_us_and_we_do_not_register_over_it(joined):
    server, client, membership = joined
    server.fence()
    with pytest.raises(FedLoraError) as caught:
        membership.with_session(lambda token: client.heartbeat(token, ""))
    assert caught.value.reason is Reason.SESSION_FENCED
    assert server.count("Register") == 1


def test_a_server_that_forgets_every_new_session_too_is_not_asked_for_ever(joined):
    server, client, membership = joined
    unknown = Fault(FedLoraError(Reason.UNKNOWN_SESSION, "who?"))
    server.fail("KeepAlive", *[unknown] * 20)
    with pytest.raises(FedLoraError, match=r"who\?"):
        membership.with_session(lambda token: client.heartbeat(token, ""))
    assert server.count("Register") == 4
