"""What every binary does: flags, processes, progress, and errors told in one sentence.

Exit status: 0 done, 2 a mistake of the user's (one sentence on standard error), anything else a
fault of ours.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator

import jax
import rich.console
import rich.progress
from absl import app, flags, logging
from ml_collections import config_flags

from pfljax.errors import UserError
from pfljax.training import runtime

_QUIET = flags.DEFINE_bool("quiet", False, "No progress bar and no table, only errors.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a SLURM, MPI or Cloud TPU job."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where nothing is detected by itself."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes take part.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is.")

console = rich.console.Console()
if not console.is_terminal:  # A log file has room for the whole table.
    console = rich.console.Console(width=120)


def define_config() -> None:
    """Defines `--config`, which `config` reads."""
    config_flags.DEFINE_config_file(
        "config", None, "The study: a file such as configs/quickstart.py.", lock_config=True
    )


def define_study() -> None:
    """Defines `--config` and `--workdir`, which `study` reads."""
    define_config()
    flags.DEFINE_string("workdir", None, "Where the results go.")


def config():
    """Returns the config that the command line names."""
    if flags.FLAGS.config is None:
        raise UserError("Name a study, such as --config=configs/quickstart.py.")
    return flags.FLAGS.config


def study():
    """Returns the config and the work directory that the command line names."""
    named = config()
    if flags.FLAGS.workdir is None:
        raise UserError("Name a directory for the results with --workdir=DIR.")
    return named, pathlib.Path(flags.FLAGS.workdir)


def run(main: Callable[[], None]) -> None:
    """Parses the flags, prepares JAX and calls `main`; ends the process."""
    try:
        _parse(sys.argv)
        engine = (getattr(flags.FLAGS, "config", None) or {}).get("engine", {})
        joined = _DISTRIBUTED.value or _COORDINATOR.value is not None
        if not joined and (_NUM_PROCESSES.value, _PROCESS_ID.value) != (None, None):
            raise UserError("--num_processes and --process_id go with --coordinator=HOST:PORT.")
        neighbours = (_NUM_PROCESSES.value or 1) if _COORDINATOR.value else 1
        runtime.start(devices=engine.get("devices", 0), processes=neighbours)
        if joined:
            runtime.join_processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        main()
        if joined:
            jax.distributed.shutdown()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the newest checkpoint", file=sys.stderr)
        sys.exit(130)


def _parse(argv: list[str]) -> None:
    app.define_help_flags()
    logging.set_verbosity(logging.ERROR)
    try:
        rest = flags.FLAGS(argv)
        if getattr(flags.FLAGS, "config", None) is not None:
            flags.FLAGS.config.get("engine")  # Only now does a missing file say so.
    except SystemExit:  # absl has printed the help, and calls that an error.
        sys.exit(0)
    except OSError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"The config file cannot be read: {reason}") from error
    except Exception as error:  # A typo in a flag, or whatever goes wrong in a config file.
        raise UserError(
            f"The command line or its config file cannot be meant: {_told(error)}"
        ) from error
    if len(rest) > 1:
        raise UserError(f"Unexpected argument {rest[1]!r}; options begin with two dashes.")


def _told(error: Exception) -> str:
    """Returns an error in one line."""
    if error.args and isinstance(error.args[0], KeyError):  # ml_collections' unknown key
        error = error.args[0]
    if isinstance(error, flags.Error):
        return " ".join(str(error).split())
    what = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(f"{type(error).__name__}: {what}".split())


def say(what) -> None:
    """Prints to standard output, from the first process and unless `--quiet`."""
    if not _QUIET.value and jax.process_index() == 0:
        console.print(what)


@contextlib.contextmanager
def progress(rounds: int) -> Iterator[Callable[..., Callable[[int, dict[str, float]], None]]]:
    """Shows a bar for each run, with rounds per second and the current scores.

    Args:
      rounds: of every run.

    Yields:
      `(name, score) -> report`, where `report(rounds_done, scores)` moves the bar of that name;
        `score` is what the runs are scored by.
    """
    columns = (
        rich.progress.TextColumn("{task.description:<14}"),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[speed]:>12}"),
        rich.progress.TextColumn("{task.fields[scores]}"),
    )
    hidden = _QUIET.value or jax.process_index() != 0
    with rich.progress.Progress(*columns, console=console, disable=hidden) as bars:

        def add(name, score):
            form = ".1%" if score == "accuracy" else ".4g"
            bar = bars.add_task(name, total=rounds, speed="", scores="")

            def report(done, scores):
                speed = bars.tasks[bar].speed
                bars.update(
                    bar,
                    completed=done,
                    speed=f"{speed:.1f} rounds/s" if speed else "",
                    scores="  ".join(f"{who} {value:{form}}" for who, value in scores.items()),
                )

            return report

        yield add
