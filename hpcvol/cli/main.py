"""The entry point `hpcvol` and its list of commands."""

import typer

from hpcvol.cli.data import data_commands
from hpcvol.cli.doctor import doctor
from hpcvol.cli.new import new
from hpcvol.cli.show import show
from hpcvol.cli.train import train
from hpcvol.cli.verify import verify

app = typer.Typer(
    name="hpcvol",
    help="Train PyTorch models over MPI, with the same weights however many ranks did the work.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(train)
app.command()(new)
app.add_typer(data_commands, name="data")
app.command()(show)
app.command()(verify)
app.command()(doctor)


def main() -> None:
    """Run the command that the process's arguments name."""
    app(prog_name="hpcvol")
