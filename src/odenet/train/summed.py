"""What of Lightning's training in several processes is done otherwise here.

Gradients are summed over the processes, each of which has then the loss that one process has of its images. With an
average that loss would have to be larger, and an adjoint with an absolute tolerance would solve to another accuracy.
Signals, and the end of a process, are left to `interrupt` and `children`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, final

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from . import children
from .interrupt import held, without_ctrl_c


@final
class Summed(DDPStrategy):
    """Lightning's own, but for the sum and the launcher; its `ddp_comm_hook` is left out where there are no GPUs."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def configure_ddp(self) -> None:
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        self.model.register_comm_hook(None, _summed)


def _summed(_, bucket):  # without annotations: PyTorch compares them, and they are strings here
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


class Launcher(_SubprocessScriptLauncher):
    """Lightning's, without the thread that ends this process by SIGKILL, without a word, when another has died."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        children.one_of_several()
        if not self.cluster_environment.creates_processes_externally:
            with held(), without_ctrl_c():  # no child is to be started and not known of
                try:
                    self._call_children_scripts()
                finally:  # those that were started before one could not be
                    children.look_after(self.procs)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


class Signals(_SignalConnector):
    """Lightning's, but for SIGTERM.

    Its own handler broadcasts: that waits for ever where a process is in another exchange, as at the end of an epoch.
    """

    @staticmethod
    def _register_signal(signum: Any, handlers: Any) -> None:
        if signum != signal.SIGTERM:
            _SignalConnector._register_signal(signum, handlers)
