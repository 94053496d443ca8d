"""The command line: arguments, one call into `marey.jobs`, printed rows.

Results go to stdout, everything else to stderr. Exit codes: 0 all good, 2 wrong use, 3 finished but some
inputs failed, 4 aborted, 5 environment, 130 interrupted with everything saved. Heavy imports happen only
after the command is known.
"""

import os
import sys
import traceback
from typing import Annotated

import typer

from marey import __version__
from marey.cli import adapt, bank, compare, data, report, run, scores, watch, weights
from marey.errors import MareyError, out_of_memory

LESS_MEMORY = (
    "Training takes less with training.batch halved and training.accumulate doubled (as many clips an "
    "update), training.checkpoint_activations=true or fewer clips.frames (--preflight tells the peak); "
    "testing with testing.views_per_forward=1; both with fewer data.workers"
)

app = typer.Typer(name="marey", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (
    *(run.demo, run.predict, watch.watch, run.features, run.train, run.test, run.recipes, run.recipe),
    *(weights.zoo, weights.convert, weights.export, weights.bench),
    *(scores.vote, compare.compare, run.doctor),
):
    app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(report.app, name="report")
app.add_typer(bank.app, name="bank")
app.add_typer(scores.app, name="pseudo-label")
app.add_typer(adapt.app, name="adapt")


def show_version(wanted: bool) -> None:
    """Print Marey's version and end."""
    if wanted:
        print(f"marey {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    """Marey trains, evaluates and runs video models."""  # --debug is read in `main`, wherever it stands


def main() -> None:
    """Entry point: runs a command and turns its errors into one line and an exit code."""
    # Huge pages for big tensors: mapping them anew, page by page, takes as long as filling them.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    arguments = sys.argv[1:]
    debug = "--debug" in arguments  # wherever it stands
    try:
        code = app([a for a in arguments if a != "--debug"] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        print(f"marey: USAGE: {error.format_message()} (`marey COMMAND --help` shows how)", file=sys.stderr)
        code = error.exit_code
    except typer.Abort:
        code = 130
    except KeyboardInterrupt:
        print("marey: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads on; Python would complain at exit
        code = 0
    except (MareyError, MemoryError, RuntimeError) as error:
        known = error if isinstance(error, MareyError) else out_of_memory(error, LESS_MEMORY)
        if known is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"marey: {known.code}: {known.message}", file=sys.stderr)
        code = known.exit_code
    sys.exit(code or 0)
