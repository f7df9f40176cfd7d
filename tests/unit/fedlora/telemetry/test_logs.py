"""Logs of one process: lines of JSON, bound context, no values of local variables."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog
from support.logs import logged

from fedlora.errors import FedLoraError
from fedlora.telemetry import bind_context, configure_logging


@pytest.fixture
def lines():
    with logged({}) as stream:
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object_with_level_name_and_time(lines):
    structlog.get_logger("here").info("round_started", round=3)
    (line,) = lines()
    assert line["event"] == "round_started"
    assert line["round"] == 3
    assert (line["level"], line["logger"]) == ("info", "here")
    assert line["timestamp"].endswith("Z")


def test_bound_context_stands_on_every_line_of_ours_and_of_libraries(lines):
    bind_context(run="r", worker="w")
    structlog.get_logger("here").info("one")
    logging.getLogger("library").warning("two %s", 2)
    bind_context(worker=None)
    structlog.get_logger("here").info("three")
    one, two, three = lines()
    assert (one["run"], one["worker"]) == ("r", "w")
    assert (two["run"], two["event"]) == ("r", "two 2")
    assert "worker" not in three


def test_a_traceback_does_not_show_the_values_of_variables(lines):
    secret = "token-" + "abc123"
    try:
        int(secret[:0])
    except ValueError:
        structlog.get_logger("here").exception("boom")
    (line,) = lines()
    assert line["exception"][0]["exc_type"] == "ValueError"
    assert secret not in json.dumps(line)


def test_levels_below_the_configured_one_are_dropped(lines):
    stream = io.StringIO()
    configure_logging(stream=stream, environ={"FEDLORA_LOG_LEVEL": "warning"})
    structlog.get_logger("here").info("no")
    structlog.get_logger("here").warning("yes")
    assert [json.loads(x)["event"] for x in stream.getvalue().splitlines()] == ["yes"]


def test_text_can_be_asked_for(lines):
    stream = io.StringIO()
    configure_logging(stream=stream, environ={"FEDLORA_LOG_FORMAT": "text"})
    structlog.get_logger("here").info("started", round=3)
    assert "started" in stream.getvalue()
    assert "round=3" in stream.getvalue()


@pytest.mark.parametrize("variable", ["FEDLORA_LOG_LEVEL", "FEDLORA_LOG_FORMAT"])
def test_an_unknown_setting_is_refused(lines, variable):
    with pytest.raises(FedLoraError, match=variable):
        configure_logging(stream=io.StringIO(), environ={variable: "loud"})
