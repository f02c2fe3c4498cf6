"""The program `odenet`. A package of its own, so that it is at work before `import odenet` loads torch."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it in one line also in the seconds of its imports."""
    try:
        from odenet.train.cli import main as run
    except KeyboardInterrupt:
        print("odenet: interrupted", file=sys.stderr)
        sys.exit(130)
    except ImportError as error:
        if (error.name or "").split(".")[0] in ("odenet", "torch"):
            raise
        print(f'odenet: {error.name} is missing: pip install "torch-odenet[train]"', file=sys.stderr)
        sys.exit(2)
    run()
