"""The common part of all commands: flags, processes, progress bars and one-line errors.

Exit status: 0 for success, 2 for a user error (one line on standard error), 130 and 143 after
SIGINT and SIGTERM; any other status is a bug.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator

import jax
import rich.console
import rich.progress
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from pfljax import metrics
from pfljax.cli import command_line
from pfljax.errors import UserError
from pfljax.training.run import compiling, runtime, workdir
from pfljax.training.run.stopping import Stopped
from pfljax.training.study import config as config_lib

_QUIET = flags.DEFINE_bool("quiet", False, "No progress bar and no table, only errors.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a SLURM, MPI or Cloud TPU job."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, if no cluster is detected."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")

flags.DEFINE_multi_string(
    "import", [], "A Python file with methods, networks, data sets or metrics of yours; repeatable."
)

# The flags that `--help` shows in addition to those of the command.
_SHARED = (
    *("config", "workdir", "print_config", "import", "quiet"),
    *("distributed", "coordinator", "num_processes", "process_id"),
)
_HELP = ("help", "helpshort", "helpfull", "helpxml", "h", "?")

# The errors of a full disk or an exhausted quota.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

console = rich.console.Console()
if not console.is_terminal:  # Log files are wide enough for the whole table.
    console = rich.console.Console(width=120)


def define_config() -> None:
    """Defines `--config`, which `config` returns, and `--print_config`."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "The config file, such as configs/quickstart.py, or the name of a config of this package, "
        "such as quickstart. --config.KEY=VALUE changes one of its keys, such as "
        "--config.data.alpha=0.5; docs/config.md describes all keys.",
        lock_config=True,
    )
    flags.DEFINE_bool("print_config", False, "Print all keys with their values and exit.")


def define_study() -> None:
    """Defines `--config` and `--workdir`, which `study` returns."""
    define_config()
    flags.DEFINE_string("workdir", None, "The directory for the results; created if missing.")


def config() -> ConfigDict:
    """Returns the config given on the command line."""
    if flags.FLAGS.config is None:
        raise UserError("Pass a config file, such as --config=configs/quickstart.py.")
    return flags.FLAGS.config


def study() -> tuple[ConfigDict, pathlib.Path]:
    """Returns the config and the work directory given on the command line."""
    named = config()
    if not flags.FLAGS.workdir:
        raise UserError("Pass a directory for the results with --workdir=DIR.")
    directory = pathlib.Path(flags.FLAGS.workdir)
    workdir.require_usable(directory)
    return named, directory


def run(
    main: Callable[[], None],
    define_flags: Callable[[], None] = lambda: None,
    description: str | None = None,
) -> None:
    """Parses the flags, prepares JAX, calls `main` and ends the process.

    Args:
      main: The work of the command.
      define_flags: Defines the flags of the command.
      description: The text that `--help` prints; None for the docstring of the script.
    """
    if description is not None:
        sys.modules["__main__"].__doc__ = description
    define_flags()
    try:
        _parse(sys.argv)
        joined = _joins()
        on_this_host = (_NUM_PROCESSES.value or 1) if _COORDINATOR.value else 1
        runtime.start(devices=_wanted_devices(), processes=on_this_host)
        if joined:
            runtime.join_processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        with runtime.one_sentence_for_lost_processes():
            main()
        if joined:
            jax.distributed.shutdown()
    except UserError as error:
        _end(f"error: {error}", 2)
    except Stopped as stopped:
        again = "the same command"
        if "resume" in flags.FLAGS and not flags.FLAGS.resume:
            again += " with --resume"
        _end(f"{stopped}; {again} resumes from there", 128 + stopped.number)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _end(
            f"error: {error.strerror}{where}; free some space or choose another directory. "
            "Complete checkpoints are kept.",
            2,
        )


def _end(sentence: str, status: int) -> None:
    """Ends the process with a message on standard error."""
    print(sentence, file=sys.stderr, flush=True)
    if jax.distributed.is_initialized() or compiling.is_active():
        # A normal exit would wait for the other processes, which wait for this one, or for programs
        # that are no longer needed.
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _joins() -> bool:
    """Whether this is one of several processes; raises a `UserError` for incomplete flags."""
    coordinator, count, own = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if coordinator is None:
        if not _DISTRIBUTED.value and (count, own) != (None, None):
            raise UserError("--num_processes and --process_id need --coordinator=HOST:PORT.")
        return _DISTRIBUTED.value
    host, _, port = coordinator.rpartition(":")
    if not re.fullmatch(r"[^\s:/]+|\[[0-9a-fA-F:.]+\]", host) or not (
        port.isdecimal() and 0 < int(port) < 2**16
    ):
        raise UserError(f"--coordinator is {coordinator!r}; it must be HOST:PORT of process 0.")
    if count is None or own is None:
        raise UserError("--coordinator needs --num_processes=N and --process_id=I.")
    if count < 1 or not 0 <= own < count:
        raise UserError(
            f"--process_id is {own} and --num_processes is {count}; process ids range from 0 to "
            "one less than the number of processes."
        )
    return True


def _wanted_devices() -> int:
    """Returns `config.engine.devices`, or 0 if invalid, which the check of the config reports."""
    engine = getattr(getattr(flags.FLAGS, "config", None), "engine", None)
    wanted = engine.get("devices", 0) if isinstance(engine, ConfigDict) else 0
    return wanted if type(wanted) is int and wanted > 0 else 0


def _parse(argv: list[str]) -> None:
    app.define_help_flags()
    logging.set_verbosity(logging.ERROR)
    for name in _SHARED:
        if name in flags.FLAGS:
            flags.FLAGS.register_key_flag_for_module(argv[0], flags.FLAGS[name])
    arguments: dict[str, str] = {}
    command_line.import_files(argv)
    if "config" in flags.FLAGS:
        argv = sys.argv = command_line.with_config_files(argv)
    if "config" in flags.FLAGS and "print_config" in flags.FLAGS:
        argv, arguments = command_line.split_model_arguments(argv)
        sys.argv = argv  # ml_collections looks for keys there.
        command_line.require_known_keys(argv)
    try:
        rest = flags.FLAGS(argv)
        if getattr(flags.FLAGS, "config", None) is not None:
            flags.FLAGS.config.get("engine")  # Only now does a missing file say so.
    except SystemExit as end:
        if any(word.lstrip("-").split("=")[0] in _HELP for word in argv[1:]):
            sys.exit(0)  # absl has printed the help, and calls that an error.
        raise UserError(
            f"The config file ends the process (exit status {end.code!r}); its get_config must "
            "return a config."
        ) from end
    except OSError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"The config file cannot be read: {reason}") from error
    except UserError:
        raise
    except Exception as error:  # A typo in a flag, or whatever goes wrong in a config file.
        raise UserError(
            f"The command line or its config file cannot be used: {_in_one_line(error)}"
        ) from error
    if len(rest) > 1:
        raise UserError(f"Unexpected argument {rest[1]!r}; options start with two dashes.")
    if arguments:
        if flags.FLAGS.config is None:
            raise UserError("Pass a config file, such as --config=configs/quickstart.py.")
        _require_models(flags.FLAGS.config)
        command_line.set_model_arguments(flags.FLAGS.config, arguments)
    if "print_config" in flags.FLAGS and flags.FLAGS.print_config:
        _require_models(config())
        print(command_line.listing(config()), end="")
        sys.exit(0)


def _require_models(config: ConfigDict) -> None:
    for key in config_lib.model_keys():
        settings = config
        for name in key.split("."):
            settings = settings.get(name) if isinstance(settings, ConfigDict) else None
        if not isinstance(settings, ConfigDict) or "name" not in settings:
            raise UserError(
                f"config.{key}.name is missing; start from default_config() of "
                "pfljax.training.study.config."
            )


def _in_one_line(error: Exception) -> str:
    """Returns the message of an error in one line."""
    if error.args and isinstance(error.args[0], KeyError):  # ml_collections' unknown key
        error = error.args[0]
    if isinstance(error, flags.Error):
        return " ".join(str(error).split())
    what = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(f"{type(error).__name__}: {what}".split())


def say(what) -> None:
    """Prints to standard output from the first process, unless `--quiet`."""
    if not _QUIET.value and jax.process_index() == 0:
        console.print(what)


@contextlib.contextmanager
def progress(rounds: int) -> Iterator[Callable[..., Callable[[int, dict[str, float]], None]]]:
    """Shows a bar for each run, with rounds per second and the current scores.

    Args:
      rounds: Number of rounds of every run.

    Yields:
      `(name, score) -> report`, a function that adds a bar for runs with the metric `score` and
        returns `report(rounds_done, scores)`, which updates the bar.
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
            form = ".1%" if metrics.is_percent(score) else ".4g"
            bar = bars.add_task(name, total=rounds, speed="", scores="")

            def report(done, scores):
                speed = bars.tasks[bar].speed
                bars.update(
                    bar,
                    completed=done,
                    speed=f"{speed:.1f} rounds/s" if speed else "",
                    scores="  ".join(f"{model} {value:{form}}" for model, value in scores.items()),
                )

            return report

        yield add
