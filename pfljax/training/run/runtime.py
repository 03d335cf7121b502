"""Devices, processes, the compilation cache, and the count of compilations."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import sys
import threading
from collections.abc import Iterator, Sequence

import jax
import threadpoolctl

from pfljax.engine import mapping
from pfljax.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None

# One thread for each CPU device: sharing every product between all devices is 10 % slower. Loops
# use the longest vectors of the CPU.
CPU_FLAGS = {"--xla_cpu_multi_thread_eigen": "false", "--xla_cpu_prefer_vector_width": "512"}


# More devices than this on one CPU are considered a typo: each uses threads and memory.
MOST_CPU_DEVICES = 64

# After this many seconds without a heartbeat, a process counts as lost, and the others exit.
_HEARTBEAT_SECONDS = 30
# Seconds that processes wait for each other at the end; one may still be writing.
_SHUTDOWN_SECONDS = 60


# Messages of CPU and GPU collectives and of the coordination service about a lost process.
_LOST = re.compile("gloo|nccl|peer|heartbeat|coordination|connection|UNAVAILABLE", re.IGNORECASE)


def _only_cpu() -> bool:
    """Whether only CPU devices are possible: no plugin is installed, or only CPUs are selected."""
    if os.environ.get("JAX_PLATFORMS"):
        return os.environ["JAX_PLATFORMS"] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None


def available_cores() -> int:
    """Returns the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start(*, devices: int = 0, processes: int = 1) -> None:
    """Prepares JAX before its first use: CPU devices and the persistent compilation cache.

    On CPU, one device per core trains one client per core at a time, far faster than one client
    spread over all cores. With GPUs or TPUs, this has no effect.

    Args:
      devices: Number of devices that the run uses in all; 0 means all available ones.
      processes: Number of processes that share this machine's cores, for several processes of a
        run on one host.
    """
    if _only_cpu():
        # These settings have an effect before JAX's first use only.
        os.environ.setdefault("NPROC", "1")
        _use_one_thread_for_decompositions()
        flags = os.environ.get("XLA_FLAGS", "")
        missing = [f"{flag}={value}" for flag, value in CPU_FLAGS.items() if flag not in flags]
        os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()
    wanted = -(-devices // processes) if devices else max(1, available_cores() // processes)
    wanted = min(wanted, max(MOST_CPU_DEVICES, available_cores()))
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:
        # The backend is already running (a notebook, a test), and its devices are used.
        pass
    if jax.config.jax_compilation_cache_dir is None:
        cache = _cache_directory()
        if cache is not None:
            jax.config.update("jax_compilation_cache_dir", str(cache))
    # The programs of a small model compile in tenths of a second, single operations in hundredths.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _use_one_thread_for_decompositions() -> None:
    """Sets the number of threads of SciPy's BLAS to one, which JAX's CPU decompositions call.

    Each device already has a core. Threads of the library that wait for each other on these cores
    make a decomposition ten to a hundred times slower.
    """
    import scipy.linalg  # noqa: F401  (loads the library)

    for library in threadpoolctl.ThreadpoolController().lib_controllers:
        if "numpy" not in library.filepath:  # NumPy has a copy of its own.
            library.set_num_threads(1)


def _cache_directory() -> pathlib.Path | None:
    """Returns the directory of compiled programs; None for a user without a home directory."""
    if os.environ.get("XDG_CACHE_HOME"):
        return pathlib.Path(os.environ["XDG_CACHE_HOME"]) / "pfljax"
    try:
        return pathlib.Path.home() / ".cache" / "pfljax"
    except RuntimeError:
        return None


def join_processes(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run; on SLURM, Cloud TPU and MPI, JAX detects the arguments."""
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"The processes could not be joined ({error}); outside SLURM, MPI and Cloud TPU, pass "
            "--coordinator=HOST:PORT, --num_processes and --process_id."
        ) from error


@contextlib.contextmanager
def one_sentence_for_lost_processes() -> Iterator[None]:
    """Converts XLA's errors about a lost process of the run to a `UserError`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not _LOST.search(str(error)):
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            f"Another process of this run ended or cannot be reached ({lines[0][:200]}); see its "
            "output, and restart all processes with --resume."
        ) from error


def devices(wanted: int) -> Sequence[jax.Device]:
    """Returns the devices of a run.

    Args:
      wanted: Number of devices over all processes; 0 means all available ones.

    Raises:
      UserError: There are fewer devices, or not all of several processes would take part.
    """
    present = jax.devices()
    if wanted > len(present):
        raise UserError(
            f"config.engine.devices is {wanted}, but there are {len(present)} "
            f"{present[0].platform} devices; lower it, or use 0 for all."
        )
    if wanted and wanted < len(present) and jax.process_count() > 1:
        raise UserError(
            f"config.engine.devices is {wanted}, but {jax.process_count()} processes have "
            f"{len(present)} devices; with several processes, use 0 for all."
        )
    return present[: wanted or len(present)]


def peak_host_bytes() -> int | None:
    """Returns the peak memory of this process in bytes; None if unknown."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_bytes(
    devices: Sequence[jax.Device], programs: Sequence[mapping.Program]
) -> int | None:
    """Returns the peak memory of one device in bytes; on CPU, as planned by XLA."""
    peaks = [
        (device.memory_stats() or {}).get("peak_bytes_in_use")
        for device in devices
        if device.process_index == jax.process_index()
    ]
    peaks = [peak for peak in peaks if peak is not None]
    peaks = peaks or [program.device_bytes for program in programs if program.device_bytes]
    return max(peaks, default=None)


class CompilationCounter:
    """Counts the XLA programs compiled in this thread while it is open."""

    def __init__(self):
        self.programs = 0
        self._thread = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **_):
        own = threading.get_ident() == self._thread
        if own and event == "/jax/core/compile/backend_compile_duration":
            self.programs += 1

    def close(self) -> None:
        """Stops counting compilations."""
        jax.monitoring.unregister_event_duration_listener(self._listen)
