"""Settings that every test runs under."""

import os

import torch
from hypothesis import settings

# One thread a worker: two workers do not fight for cores, and sums are taken in the same order on every machine.
torch.set_num_threads(1)

# What has to pass does not depend on luck; `make test-all` looks for new cases.
settings.register_profile("odenet", deadline=None, derandomize="ODENET_NEW_CASES" not in os.environ)
settings.load_profile("odenet")
