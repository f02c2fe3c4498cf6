"""Settings that every test runs under."""

import os

import torch
from hypothesis import settings

# One thread a worker: two workers do not fight for cores, and sums are taken in the same order on every machine.
torch.set_num_threads(1)

settings.register_profile("odenet", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("odenet")
