"""What the tests of compiled solves share: a compiler, one folder for what it makes, and one small field."""

import os
import shutil

import pytest
import torch

import odenet.compiled


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """A folder that all workers share: what one has compiled the others find."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "libraries"


@pytest.fixture(autouse=True)
def compiler(libraries, monkeypatch):
    """Skips without a C++ compiler; the folder, no warning given yet, and no question of which code is faster.

    That depends on what else the machine does while the tests run.
    """
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("compile=True needs a C++ compiler: neither $CXX nor g++ is there")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(libraries))
    monkeypatch.setattr(odenet.compiled, "_warned", set())
    monkeypatch.setattr("odenet.compiled.autotune.CLEAR_SPEEDUP", 0.0)


@pytest.fixture
def compiles_nothing(monkeypatch):
    """Called, it makes every compilation an error from then on (a warning of a solve, that is)."""

    def start():
        def refuse(*_):
            raise AssertionError("something was compiled")

        monkeypatch.setattr("odenet.compiled.build.compile_loop", refuse)

    return start


@pytest.fixture
def params():
    """A weight and a bias of the field that most tests share."""
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(3, 3, generator=draw, dtype=torch.float64)
    b = torch.randn(3, generator=draw, dtype=torch.float64)
    return [w.requires_grad_(), b.requires_grad_()]


@pytest.fixture
def y0():
    return torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
