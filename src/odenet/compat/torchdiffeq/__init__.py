"""torchdiffeq's functions on this library's solvers: `import odenet.compat.torchdiffeq as torchdiffeq`.

Signatures, options, callbacks, event mode, norms and classes of errors are those of torchdiffeq's main branch;
docs/migrate.md says what is better and what differs on purpose. `register()` makes `import torchdiffeq` mean this
package for programs that cannot be changed, and `python -m odenet.compat.torchdiffeq -m some.module ...` runs one so.
"""

import importlib
from types import ModuleType

from .adjoint_call import odeint_adjoint
from .event_call import odeint_event
from .launch import register
from .plain_call import odeint, odeint_dense

__version__ = "0.2.5"  # whose callers this serves; they compare it


def __getattr__(name: str) -> ModuleType:
    """`torchdiffeq._impl`, as an attribute, for who reaches into it without an import of their own."""
    if name == "_impl":
        return importlib.import_module(f"{__name__}._impl")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event", "register"]
