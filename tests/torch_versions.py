"""What only newer versions of PyTorch can do."""

import pytest
import torch

needs_tracing = pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="TorchDynamo traces a whole solve from PyTorch 2.13 on"
)
