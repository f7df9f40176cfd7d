"""An adapter of the worker's own, trained beside the global one where a plug-in of the run asks.

It is trained once the round's update is made, from where the worker left it, and kept in the
plug-ins' memory. Where published versions are scored, it is scored as well.
"""

from __future__ import annotations

import structlog
from torch import Tensor

from client_worker.loading import LoadedTrainer
from client_worker.plugin_memory import PluginMemory, own_adapter_of
from client_worker.stop import StopRequest
from client_worker.training.round_work import RoundWork
from fedlora.adapters.extras import extras_of
from fedlora.adapters.names import extra_key
from fedlora.runs.tasks import Evaluation, EvaluationScope, Registration, Task, TaskKind

__all__ = ["OwnTraining"]

log = structlog.get_logger(__name__)


class OwnTraining:
    """Trains and scores the worker's own adapter.

    Args:
        memory: keeps it from round to round.
        stop: ends the worker while it scores.
    """

    def __init__(self, memory: PluginMemory, stop: StopRequest) -> None:
        self._memory = memory
        self._stop = stop

    def trained(
        self,
        task: Task,
        loaded: LoadedTrainer,
        registration: Registration,
        work: RoundWork,
    ) -> dict[str, Tensor]:
        """What is to be kept of a round; nothing for a run without such an adapter.

        The model has the worker's own adapter in it afterwards.

        Raises:
            TaskAbandoned: once `work.should_abandon` says so.
        """
        name = own_adapter_of(loaded.assignment[0])
        if not name or task.kind is not TaskKind.TRAIN:
            return {}
        before = extras_of(self._memory.before(task, loaded, registration), name)
        loaded.trainer.load_adapter(loaded.held.tensors)
        own = loaded.trainer.train_own(work, before or None)
        log.info("own_adapter_trained")
        return {extra_key(name, key): tensor for key, tensor in own.items()}

    def scores(
        self, task: Task, loaded: LoadedTrainer, registration: Registration
    ) -> tuple[Evaluation, ...]:
        """Of the worker's own adapter, which the model then has in it, once there is one."""
        name = own_adapter_of(loaded.assignment[0])
        own = extras_of(self._memory.before(task, loaded, registration), name) if name else {}
        if not own:
            return ()
        loaded.began_from, loaded.pristine = None, False
        loaded.trainer.load_adapter(loaded.held.tensors, own)
        with self._stop.window():
            return loaded.trainer.evaluate(EvaluationScope.PERSONAL, round=task.round)
