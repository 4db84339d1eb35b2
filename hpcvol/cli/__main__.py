"""`python -m hpcvol.cli` is `hpcvol`, by the interpreter that runs it: how `hpcvol train` starts its ranks."""

from hpcvol.cli.main import main

main()
