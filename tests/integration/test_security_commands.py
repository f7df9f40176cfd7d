"""docs/security.md, command by command: from nothing to a member, and to one no longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ServerProcess
from support.runs import run_spec

from fedlora.exit_codes import ExitCode


def fedlora(*arguments: object, identity: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FEDLORA_")}
    if identity is not None:
        environment["FEDLORA_IDENTITY_DIR"] = str(identity)
    return subprocess.run(
        [sys.executable, "-m", "fedlora_cli", *map(str, arguments)],
        env={**environment, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def told(*arguments: object, identity: Path | None = None) -> str:
    done = fedlora(*arguments, identity=identity)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(160)
def test_from_nothing_to_a_member_and_to_one_no_longer(tmp_path: Path):
    fed, invitation, own = tmp_path / "fed", tmp_path / "a.json", tmp_path / "identity"
    told("pki", "init", fed, "--federation", "clinics", "--server-name", "127.0.0.1")
    operator = fed / "operator"
    settings = {
        "identity_dir": fed / "server",
        "authority_dir": fed / "authority",
        # The worker learns of no other address than the one in its invitation.
        "enrolment_address": "127.0.0.1:0",
    }
    with ServerProcess(tmp_path / "server", run_spec(), **settings) as server:
        events = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
        (enrolment,) = (e["enrolment"] for e in events if e["event"] == "serving")
        at = ("--server", server.address)
        token = ("pki", "token", "hospital-a", "--enrolment", enrolment, "--out", invitation)
        assert fedlora(*token, *at).returncode == ExitCode.USAGE
        assert "'hospital-a' may enrol once" in told(*token, *at, identity=operator)
        told("worker", "enroll", invitation, "--out", own)
        assert "spiffe://clinics/worker/hospital-a" in told("pki", "show", own)
        again = fedlora("worker", "enroll", invitation, "--out", tmp_path / "other")
        assert again.returncode == ExitCode.USAGE
        assert "not authenticated" in again.stderr
        assert "hospital-a" in told("pki", "members", *at, identity=operator)
        assert "test" in told("runs", *at, identity=operator)
        as_worker = fedlora("runs", *at, identity=own)
        assert as_worker.returncode == ExitCode.REFUSED
        assert "the role worker may not call ListRuns" in as_worker.stderr
        told("pki", "revoke", "hospital-a", *at, identity=operator)
        revoked = fedlora("runs", *at, identity=own)
        assert "not authenticated" in revoked.stderr
        stranger = fedlora("runs", *at)
        assert stranger.returncode == ExitCode.UNREACHABLE
        assert "docs/security.md" in stranger.stderr
        log = server.log
    secret = json.loads(invitation.read_text())["join_token"]
    assert secret not in log, "a token is never logged"
