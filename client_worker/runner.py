"""A worker's main line: register, load, confirm, then one task after the other until the end.

Beside it two threads: heartbeats, from registration on, so that neither loading nor training looks
like death; and progress reports.

What an error means depends on where it came from. The server's refusals arrive as `RefusedError`. A
FedLoraError from anywhere else is this machine's: its model, its data, its device. Both end the
worker with a documented exit code; whatever is neither is a mistake of ours, and raised.

The text of an error stays in this process's log: it may name a file of this machine, and what
another package wrote into it may quote a row. The server is told the reason's code, for its log and
its observers are not the owner of the data.
"""

from __future__ import annotations

import time
from pathlib import Path

import structlog

from client_worker.asking import Asking, RefusedError
from client_worker.coding import UpdateCoder
from client_worker.config import WorkerConfig
from client_worker.heartbeat import Heartbeats
from client_worker.loading import AdapterLoader, LoadedTrainer
from client_worker.membership import Membership, assignment_of
from client_worker.outbox import Outbox
from client_worker.own_adapter import OwnAdapter
from client_worker.patience import TRANSIENT, Patience
from client_worker.plugin_memory import PluginMemory
from client_worker.ports import Federation, RankLimit, TrainerFactory
from client_worker.private_parts import PrivateParts
from client_worker.progress import ProgressReporter
from client_worker.session import Event, Session, State
from client_worker.stop import Stopped, StopRequest
from client_worker.tasks import TaskWork
from client_worker.telemetry import Silent, Telemetry
from fedlora.adapters.shape import AdapterShape
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import ExitCode, exit_code_of
from fedlora.runs.tasks import Capabilities, Registration, Task, TaskKind
from fedlora.telemetry import bind_context

__all__ = ["POLL_SECONDS", "Runner"]

log = structlog.get_logger(__name__)

POLL_SECONDS = 50.0
"""one poll for a task: below the 60 s after which common proxies drop a silent call"""

_SHORTEST_POLL_SECONDS = 1.0
"""a server that answers "wait" at once is asked no more often than this"""

_JOINING = TRANSIENT | {Reason.NO_FREE_SLOT}
"""a slot becomes free once the server misses the worker that held it"""


class Runner:
    """Works for one server until the run is over or something ends it.

    Args:
        config: the worker's settings.
        name: its name.
        federation: the server.
        create_trainer: loads the base model, attaches the adapter, reads the data.
        capabilities: what the worker runs on.
        stop: whether somebody asked it to end.
        patience: how long to go on without the server.
        scratch: folder for downloads where config.cache_dir is unset.
        rank_limit: the largest rank it can train of the run that it is given; None for any.
        telemetry: told how training goes; nobody if None.
    """

    def __init__(
        self,
        config: WorkerConfig,
        *,
        name: str,
        federation: Federation,
        create_trainer: TrainerFactory,
        capabilities: Capabilities,
        stop: StopRequest,
        patience: Patience,
        scratch: Path,
        rank_limit: RankLimit | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._name = name
        self._create_trainer = create_trainer
        self._rank_limit = rank_limit
        self._stop = stop
        self._federation = federation
        self._session = Session()
        membership = Membership(
            federation, name=name, run_name=config.run_name, capabilities=capabilities
        )
        self._membership = membership
        self._asking = Asking(membership, patience, stop)
        self._heartbeats = Heartbeats(
            lambda task, answered: membership.with_session(
                lambda token: federation.heartbeat(token, task, answered=answered)
            ),
            on_answer=patience.succeeded,
        )
        self._progress = ProgressReporter(
            lambda p: federation.report_metrics(membership.registration.session_token, p)
        )
        # Workers of one machine may share a cache folder; what follows is one worker's own.
        folder = config.cache_dir / "workers" / name if config.cache_dir else None
        private = PrivateParts(folder / "private" if folder else None)
        self._work = TaskWork(
            federation=federation,
            asking=self._asking,
            session=self._session,
            heartbeats=self._heartbeats,
            progress=self._progress,
            loader=AdapterLoader(
                federation, self._asking, private, folder=(folder or scratch) / "adapters"
            ),
            private=private,
            personal=PrivateParts(folder / "personal" if folder else None),
            own=OwnAdapter(folder / "own" if folder else None, name),
            memory=PluginMemory(PrivateParts(folder / "plugins" if folder else None)),
            coder=UpdateCoder(PrivateParts(folder / "residuals" if folder else None)),
            outbox=Outbox(folder / "outbox" if folder else None),
            stop=stop,
            telemetry=telemetry or Silent(),
        )

    @property
    def state(self) -> State:
        """Where the worker stands."""
        return self._session.state

    def run(self) -> ExitCode:
        """Works until the end and leaves in good order.

        Returns:
            The exit code (docs/worker.md).

        Raises:
            Exception: a mistake of ours, after leaving.
        """
        self._stop.own()
        try:
            self._join()
            reason = told = self._go_through_tasks()
        except Stopped:
            code = self._stop.exit_code
            reason = told = self._stop.reason
        except RefusedError as refused:
            code, reason = exit_code_of(refused.error, from_server=True), str(refused)
            told = f"{refused.error.reason}: a call to the server did not succeed"
        except FedLoraError as error:
            code, reason = exit_code_of(error), str(error)
            told = f"{error.reason}: the worker's own log says what is wrong"
        except Exception as error:
            reason = f"internal error: {type(error).__name__}"
            self._end(ExitCode.INTERNAL, reason, told=reason)
            raise
        else:
            code = ExitCode.OK
        self._end(code, reason, told=told)
        return code

    def _join(self) -> None:
        """Registers and begins to prove life."""
        registration = self._asking.insist(
            "registering", self._membership.register, transient=_JOINING
        )
        self._session.handle(Event.REGISTERED)
        bind_context(run=registration.run.name)
        log.info(
            "registered",
            run_id=registration.run_id,
            rank=registration.rank,
            data_slot=registration.data_slot.index if registration.data_slot else None,
            replaced_session=registration.replaced_session,
        )
        context = {"worker": self._name, "run": registration.run.name}
        self._heartbeats.start(
            interval_seconds=registration.limits.heartbeat_interval_seconds, **context
        )
        self._progress.start(**context)
        if self._rank_limit is not None:
            with self._stop.window():
                limit = self._rank_limit(registration.run)
            if limit < registration.rank:
                registration = self._asking.insist(
                    "registering for a lower rank", lambda: self._membership.lower_rank(limit)
                )
            log.info("rank_fitted", largest=limit, rank=registration.rank)

    def _go_through_tasks(self) -> str:
        """Does what there is to do; returns why the server says that it is over."""
        loaded = self._load()
        while True:
            task = self._next_task()
            registration = self._membership.registration
            if task.kind is TaskKind.STOP:
                return task.reason
            changed = assignment_of(registration) != loaded.assignment
            if changed or (task.kind is TaskKind.INITIALIZE and not loaded.pristine):
                self._session.handle(Event.RUN_CHANGED)
                del loaded  # the old model must be gone before the new one comes
                loaded = self._load()
                continue
            if task.kind is TaskKind.WAIT:
                log.debug("waiting", reason=task.reason)
                continue
            bind_context(round=task.round, task=task.task_id)
            with self._heartbeats.holding(task.task_id):
                if task.kind is TaskKind.INITIALIZE:
                    self._work.initialize(task, loaded, registration)
                elif task.kind in (TaskKind.TRAIN, TaskKind.REFINE):
                    self._work.train(task, loaded, registration)
                else:
                    self._work.evaluate(task, loaded, registration)
            bind_context(round=None, task=None)

    def _load(self) -> LoadedTrainer:
        """Makes a trainer for the registration as it is now, and confirms its adapter."""
        while True:
            loaded = self._load_for(self._membership.registration)
            if assignment_of(self._membership.registration) == loaded.assignment:
                self._session.handle(Event.CONFIRMED)
                log.info("ready")
                return loaded
            # Registered again in the meantime, and for something else.
            self._session.handle(Event.RUN_CHANGED)
            del loaded

    def _load_for(self, registration: Registration) -> LoadedTrainer:
        self._session.handle(Event.LOADING_BEGAN)
        began = time.monotonic()
        with self._stop.window():
            trainer = self._create_trainer(registration)
        layout, assignment = trainer.layout, assignment_of(registration)
        seconds = round(time.monotonic() - began, 1)
        log.info("loaded", num_modules=len(layout.modules), seconds=seconds)
        self._asking.insist(
            "confirming the adapter", lambda: self._membership.confirm(assignment, layout)
        )
        shape = AdapterShape(
            layout=layout,
            kind=registration.run.adapter.kind,
            rank=registration.rank,
            dtype=registration.run.wire_dtype,
        )
        return LoadedTrainer(trainer=trainer, assignment=assignment, shape=shape)

    def _next_task(self) -> Task:
        self._heartbeats.raise_if_fenced()
        began = time.monotonic()
        task = self._asking.ask(
            "asking for a task",
            lambda token: self._federation.await_task(token, max_wait_seconds=POLL_SECONDS),
        )
        left = began + _SHORTEST_POLL_SECONDS - time.monotonic()
        if task.kind is TaskKind.WAIT and left > 0:
            self._asking.rest(left)
        return task

    def _end(self, code: ExitCode, reason: str, *, told: str) -> None:
        """Leaves, where there is somebody to leave, and ends the threads.

        Args:
            code: the exit code.
            reason: for this process's log.
            told: for the server.
        """
        self._progress.close()
        if code in (ExitCode.FENCED, ExitCode.UNREACHABLE):
            self._session.handle(Event.CUT_OFF)
        elif self._session.handle(Event.STOPPING) is State.LEAVING:
            try:
                self._membership.leave(told)
            except FedLoraError as error:
                log.debug("leave_failed", reason=error.reason.value)
            self._session.handle(Event.LEFT)
        self._heartbeats.close()
        report = log.info if code in (ExitCode.OK, ExitCode.INTERRUPTED) else log.error
        report("gone", reason=reason, exit_code=int(code))
        bind_context(run=None, round=None, task=None)
