"""torchdiffeq's functions on this library's solvers: `import odenet.compat.torchdiffeq as torchdiffeq`.

Signatures, options, callbacks, event mode, norms and classes of errors are those of torchdiffeq's main branch;
docs/migrate.md says what is better and what differs on purpose. `register()` makes `import torchdiffeq` mean this
package for programs that cannot be changed, and `python -m odenet.compat.torchdiffeq -m some.module ...` runs one so.
"""

from .adjoint import odeint_adjoint
from .events import odeint_event
from .launch import register
from .solve import odeint, odeint_dense

__version__ = "0.2.5"  # whose callers this serves; they compare it

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event", "register"]
