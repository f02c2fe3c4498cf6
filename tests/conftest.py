"""Settings that every test runs under."""

import os

import pytest
import torch
from hypothesis import settings

# One thread a worker: two workers do not fight for cores, and sums are taken in the same order on every machine.
# `make test-matrix` runs the tests with two as well, and with float64 as the default dtype.
torch.set_num_threads(int(os.environ.get("ODENET_TEST_THREADS", "1")))
torch.set_default_dtype(
    {"float32": torch.float32, "float64": torch.float64}[os.environ.get("ODENET_TEST_DTYPE", "float32")]
)

# What has to pass does not depend on luck; `make test-all` looks for new cases.
NEW_CASES = "ODENET_NEW_CASES" in os.environ
settings.register_profile("odenet", deadline=None, derandomize=not NEW_CASES)
settings.load_profile("odenet")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test, or a fixture of its module, draws from PyTorch's global state is the same in every run.

    With new cases it follows the seed that was printed for the order of the tests.
    """
    torch.manual_seed(int(item.config.getoption("randomly_seed", default=0)) if NEW_CASES else 0)
