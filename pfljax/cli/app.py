"""What every binary does: flags, processes, progress, and errors in one sentence.

Exit status: 0 done, 2 a mistake of the user's (one sentence on standard error), 130 and 143 stopped
by SIGINT and SIGTERM, anything else a fault of ours.
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

from pfljax.cli import command_line
from pfljax.errors import UserError
from pfljax.training.run import runtime, workdir
from pfljax.training.run.stopping import Stopped
from pfljax.training.study import config as config_lib

_QUIET = flags.DEFINE_bool("quiet", False, "No progress bar and no table, only errors.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a SLURM, MPI or Cloud TPU job."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where nothing is detected by itself."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes take part.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is.")

# What `--help` shows beside the flags of the binary itself.
_SHARED = (
    *("config", "workdir", "print_config", "quiet"),
    *("distributed", "coordinator", "num_processes", "process_id"),
)
_HELP = ("help", "helpshort", "helpfull", "helpxml", "h", "?")

# What a disk or its quota answers when there is no space.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

console = rich.console.Console()
if not console.is_terminal:  # A log file has room for the whole table.
    console = rich.console.Console(width=120)


def define_config() -> None:
    """Defines `--config`, which `config` reads, and `--print_config`."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "The experiment: a file such as configs/quickstart.py. --config.KEY=VALUE changes a key of "
        "it, such as --config.data.alpha=0.5; docs/config.md lists the keys with their meaning.",
        lock_config=True,
    )
    flags.DEFINE_bool("print_config", False, "Print all keys with their values, and do no more.")


def define_study() -> None:
    """Defines `--config` and `--workdir`, which `study` reads."""
    define_config()
    flags.DEFINE_string("workdir", None, "The directory for the results; made where there is none.")


def config() -> ConfigDict:
    """Returns the config that the command line names."""
    if flags.FLAGS.config is None:
        raise UserError("Name an experiment, such as --config=configs/quickstart.py.")
    return flags.FLAGS.config


def study() -> tuple[ConfigDict, pathlib.Path]:
    """Returns the config and the work directory that the command line names."""
    named = config()
    if not flags.FLAGS.workdir:
        raise UserError("Name a directory for the results with --workdir=DIR.")
    directory = pathlib.Path(flags.FLAGS.workdir)
    workdir.require_usable(directory)
    return named, directory


def run(
    main: Callable[[], None],
    define_flags: Callable[[], None] = lambda: None,
    description: str | None = None,
) -> None:
    """Parses the flags, prepares JAX and calls `main`; ends the process.

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
        neighbours = (_NUM_PROCESSES.value or 1) if _COORDINATOR.value else 1
        runtime.start(devices=_wanted_devices(), processes=neighbours)
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
        _end(f"{stopped}; {again} goes on from there", 128 + stopped.number)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _end(
            f"error: {error.strerror}{where}; free some space or name another directory. "
            "Checkpoints that are complete are kept.",
            2,
        )


def _end(sentence: str, status: int) -> None:
    """Ends the process with a sentence on standard error."""
    print(sentence, file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        # The usual way out waits for processes that wait for this one.
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _joins() -> bool:
    """Whether this is one of several processes; raises a `UserError` for half a description."""
    coordinator, count, own = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if coordinator is None:
        if not _DISTRIBUTED.value and (count, own) != (None, None):
            raise UserError("--num_processes and --process_id go with --coordinator=HOST:PORT.")
        return _DISTRIBUTED.value
    host, _, port = coordinator.rpartition(":")
    if not re.fullmatch(r"[^\s:/]+|\[[0-9a-fA-F:.]+\]", host) or not (
        port.isdecimal() and 0 < int(port) < 2**16
    ):
        raise UserError(f"--coordinator is {coordinator!r}; it must be HOST:PORT of process 0.")
    if count is None or own is None:
        raise UserError("--coordinator goes with --num_processes=N and --process_id=I.")
    if count < 1 or not 0 <= own < count:
        raise UserError(
            f"--process_id is {own} and --num_processes is {count}; processes count from 0 to one "
            "less than there are."
        )
    return True


def _wanted_devices() -> int:
    """Returns `config.engine.devices`, 0 where it is no number: the check of the config says so."""
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
        raise UserError(f"Unexpected argument {rest[1]!r}; options begin with two dashes.")
    if arguments:
        if flags.FLAGS.config is None:
            raise UserError("Name an experiment, such as --config=configs/quickstart.py.")
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
                f"config.{key}.name is missing; begin with default_config() of "
                "pfljax.training.study.config."
            )


def _in_one_line(error: Exception) -> str:
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
