from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_worker.session import TABLE, Event, IllegalEventError, Session, State, mermaid

ALIVE = [s for s in State if s not in (State.LEAVING, State.GONE)]


def test_a_round_of_training_and_evaluation_leads_back_to_ready():
    session = Session()
    for event in (
        Event.REGISTERED,
        Event.LOADING_BEGAN,
        Event.CONFIRMED,
        Event.TRAIN_GIVEN,
        Event.TRAINED,
        Event.ACKNOWLEDGED,
        Event.EVALUATE_GIVEN,
        Event.REPORTED,
    ):
        session.handle(event)
    assert session.state is State.READY


def test_a_worker_that_stops_after_registration_tells_the_server_and_before_it_does_not():
    assert TABLE[State.DIALLING, Event.STOPPING] is State.GONE
    for state in ALIVE[1:]:
        assert TABLE[state, Event.STOPPING] is State.LEAVING


@pytest.mark.parametrize("state", ALIVE)
def test_being_cut_off_ends_a_worker_without_leaving(state: State):
    assert TABLE[state, Event.CUT_OFF] is State.GONE


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_an_illegal_event_is_refused_and_changes_nothing(events: list[Event]):
    session = Session()
    for event in events:
        before = session.state
        if (before, event) in TABLE:
            assert session.handle(event) is TABLE[before, event]
        else:
            with pytest.raises(IllegalEventError, match=before.name):
                session.handle(event)
            assert session.state is before


def test_every_state_can_be_reached_and_gone_is_final():
    reached = {State.DIALLING}
    while more := {to for (a, _), to in TABLE.items() if a in reached} - reached:
        reached |= more
    assert reached == set(State)
    assert not [event for state, event in TABLE if state is State.GONE]


def test_the_documentation_shows_the_table():
    text = (Path(__file__).parents[3] / "docs" / "worker.md").read_text()
    assert f"```mermaid\n{mermaid()}\n```" in text
