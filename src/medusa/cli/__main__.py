"""`python -m medusa.cli`."""

from . import main

main()
