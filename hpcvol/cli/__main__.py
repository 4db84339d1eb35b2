"""`python -m hpcvol.cli` is `hpcvol`, by the interpreter that runs it: how `hpcvol train` starts its ranks."""

import signal

from hpcvol import environment

# Whoever started this rank asks it to stop by a signal. It waits until the rank listens, which takes some imports.
if environment.variable("HPCVOL_LAUNCHED") is not None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

from hpcvol.cli.main import main

main()
