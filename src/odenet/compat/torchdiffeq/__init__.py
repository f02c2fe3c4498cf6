"""torchdiffeq's functions on this library's solvers: `import odenet.compat.torchdiffeq as torchdiffeq`.

Signatures, options, callbacks, event mode, norms and error classes are those of torchdiffeq's main branch;
docs/migrate.md lists improvements and intended differences. `register()` makes `import torchdiffeq` mean this package
in programs that cannot be changed; `python -m odenet.compat.torchdiffeq -m some.module ...` runs such a program.
"""

import importlib
from types import ModuleType

from .adjoint_call import odeint_adjoint
from .event_call import odeint_event
from .launch import register
from .plain_call import odeint, odeint_dense

__version__ = "0.2.5"  # torchdiffeq's version with the same interface; programs compare it


def __getattr__(name: str) -> ModuleType:
    """`torchdiffeq._impl` as an attribute, for programs that use it without importing it."""
    if name == "_impl":
        return importlib.import_module(f"{__name__}._impl")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event", "register"]
