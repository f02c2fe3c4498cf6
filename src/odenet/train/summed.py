"""What of Lightning's training in several processes is done otherwise here.

Gradients are summed over the processes, each of which has then the loss that one process has of its images. With an
average that loss would have to be larger, and an adjoint with an absolute tolerance would solve to another accuracy.
Signals are left to `interrupt`.
"""

from __future__ import annotations

import signal
from typing import Any, final

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel


@final
class Summed(DDPStrategy):
    """Lightning's own, but for the sum; its `ddp_comm_hook` is left out where there are no GPUs."""

    def configure_ddp(self) -> None:
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        self.model.register_comm_hook(None, _summed)


def _summed(_, bucket):  # without annotations: PyTorch compares them, and they are strings here
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


class Signals(_SignalConnector):
    """Lightning's, but for SIGTERM.

    Its own handler broadcasts: that waits for ever where a process is in another exchange, as at the end of an epoch.
    """

    @staticmethod
    def _register_signal(signum: Any, handlers: Any) -> None:
        if signum != signal.SIGTERM:
            _SignalConnector._register_signal(signum, handlers)
