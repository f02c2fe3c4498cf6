"""`python -m odenet.compat.torchdiffeq -m some.module ...`: see launch.py."""

import sys

from .launch import main

if __name__ == "__main__":
    main(sys.argv[1:])
