"""`hpcvol train`: the one way to start a run. Starts ranks, or takes its place where a launcher started it."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from hpcvol import environment
from hpcvol.cli.reporting import reported
from hpcvol.cli.supervision import Ending, supervise
from hpcvol.comm import start
from hpcvol.comm.launch import default_num_ranks, launch_command
from hpcvol.comm.launcher import under_launcher
from hpcvol.comm.reserve import require_members
from hpcvol.errors import ConfigError
from hpcvol.train.completion import Completion
from hpcvol.train.config import Config, ElasticConfig, load_config
from hpcvol.train.project import load_project
from hpcvol.train.stopping import StopRequest

EXIT_STOPPED = 130
# Set for ranks that were started here: whoever started them knows by the summary whether the run is complete.
LAUNCHED = "HPCVOL_LAUNCHED"
# The width of the terminal that rank 0 may draw its progress line on; not set where the output is no terminal.
TERMINAL = "HPCVOL_TERMINAL"


@reported
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, a TOML file.")],
    num_ranks: Annotated[
        int | None, typer.Option("-n", min=1, metavar="N", help="Ranks to start (1; in a Slurm job its tasks).")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replaces a key: --set train.steps=100")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the run is kept (runs/NAME beside CONFIG).")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over where there is a run already.")] = False,
) -> None:
    """Train a model as CONFIG says. A run that was stopped goes on where its last checkpoint was."""
    overrides = overrides or []
    if not under_launcher():
        loaded = load_config(config, overrides)
        run_dir = run_dir or _default_run_dir(loaded, config)
        arguments = [str(config), *_options(overrides, run_dir, fresh=fresh)]
        _launch(num_ranks or default_num_ranks(), arguments, Completion(run_dir), loaded.elastic)
    elif num_ranks is None:
        _take_place(config, overrides, run_dir, fresh)
    else:
        raise ConfigError(
            f"-n {num_ranks} starts ranks, but this process is a rank already: leave -n to the launcher",
            everywhere=True,
        )


def _options(overrides: list[str], run_dir: Path, *, fresh: bool) -> list[str]:
    pairs = [part for override in overrides for part in ("--set", override)]
    return [*pairs, "--run-dir", str(run_dir), *(["--fresh"] if fresh else [])]


def _default_run_dir(loaded: Config, path: Path) -> Path:
    return loaded.folder / "runs" / path.stem


def _take_place(path: Path, overrides: list[str], run_dir: Path | None, fresh: bool) -> None:
    """Train as one rank of several. Collective."""
    # Stop requests count from here on: loading torch takes seconds in which somebody may want to stop.
    with StopRequest() as stop, load_project(start(), path, overrides) as config:
        from hpcvol.train.trainer import Trainer

        run_dir = run_dir or _default_run_dir(config, path)
        program = ["hpcvol.cli", "train", str(path), *_options(overrides, run_dir, fresh=False)]
        complete = Trainer(config, run_dir, fresh=fresh, stop=stop, program=program).fit()
    if not complete and environment.variable(LAUNCHED) is None:
        raise typer.Exit(EXIT_STOPPED)


def _launch(num_ranks: int, arguments: list[str], completion: Completion, elastic: ElasticConfig) -> None:
    """Start ranks, wait for them, and exit as the run ended."""
    require_members(num_ranks, elastic.spares)
    program = [sys.executable, "-m", "hpcvol.cli", "train", *arguments]
    launch = launch_command(num_ranks, program, elastic=elastic.enabled, detect_seconds=elastic.detect_seconds)
    print(f"{launch.note}\n$ {shlex.join(launch.argv)}", flush=True)
    variables = {**launch.environment, LAUNCHED: "1", **_terminal()}
    ending = supervise(
        launch.argv,
        {**environment.snapshot(), **variables},
        has_ended=lambda: completion.is_complete(EXIT_STOPPED) or completion.has_stopped(),
    )
    if completion.is_complete(ending.status):
        return
    if ending.stopped:
        raise typer.Exit(EXIT_STOPPED)
    print(
        f"hpcvol: the run is not complete ({_words(ending)}); when what stopped it is mended, the same command goes on "
        "from its last checkpoint",
        file=sys.stderr,
    )
    raise typer.Exit(ending.status if 0 < ending.status < 128 else 1)


def _words(ending: Ending) -> str:
    if ending.outlived:
        return "the launcher outlived its ranks and was ended"
    return f"the launcher was ended by signal {-ending.status}" if ending.status < 0 else f"status {ending.status}"


def _terminal() -> dict[str, str]:
    return {TERMINAL: str(shutil.get_terminal_size().columns)} if sys.stdout.isatty() else {}
