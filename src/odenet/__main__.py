"""`python -m odenet` is the command `odenet`."""

from odenet_command import main

if __name__ == "__main__":
    main()
