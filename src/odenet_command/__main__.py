"""`python -m odenet_command`, which is `odenet`."""

from . import main

main()
