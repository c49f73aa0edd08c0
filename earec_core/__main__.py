"""`python -m earec_core` is the `earec` command."""

from earec_core.cli import main

main()
