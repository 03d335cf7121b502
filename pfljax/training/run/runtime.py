"""Devices, processes, the compilation cache, and the count of what was compiled."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

import jax

from pfljax.engine import mapping
from pfljax.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None

# Each CPU device computes on a thread of its own: sharing every product between all devices costs a
# tenth of the speed. Loops use the longest vectors that there are.
CPU_FLAGS = {"--xla_cpu_multi_thread_eigen": "false", "--xla_cpu_prefer_vector_width": "512"}


# More devices than this on one CPU are a mistyped number: each takes threads and memory.
MOST_CPU_DEVICES = 64

# After so many seconds without a sign of life a process counts as lost. The others then end.
_HEARTBEAT_SECONDS = 30
# How long processes wait for each other at the end; one may still be writing.
_SHUTDOWN_SECONDS = 60


# What the collectives of CPUs and GPUs and the coordination service say of a lost process.
_LOST = re.compile("gloo|nccl|peer|heartbeat|coordination|connection|UNAVAILABLE", re.IGNORECASE)


def _only_cpu() -> bool:
    """Whether JAX can have no other device: no plugin for one is installed, or none is wanted."""
    if os.environ.get("JAX_PLATFORMS"):
        return os.environ["JAX_PLATFORMS"] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None


def available_cores() -> int:
    """Returns how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start(*, devices: int = 0, processes: int = 1) -> None:
    """Prepares JAX before its first use: CPU devices and the persistent compilation cache.

    On CPU one device per core trains as many clients at once, far faster than one client spread
    over all cores. Where there are GPUs or TPUs, this changes nothing that is used.

    Args:
      devices: how many the run wants in all; 0 means all there are.
      processes: that share this machine's cores, for runs of several processes on one host.
    """
    if _only_cpu():
        # These count before JAX's first use only.
        os.environ.setdefault("NPROC", "1")
        flags = os.environ.get("XLA_FLAGS", "")
        missing = [f"{flag}={value}" for flag, value in CPU_FLAGS.items() if flag not in flags]
        os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()
    wanted = -(-devices // processes) if devices else max(1, available_cores() // processes)
    wanted = min(wanted, max(MOST_CPU_DEVICES, available_cores()))
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:
        # The backend runs already (a notebook, a test): its devices are what there is.
        pass
    if jax.config.jax_compilation_cache_dir is None:
        cache = _cache_directory()
        if cache is not None:
            jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _cache_directory() -> pathlib.Path | None:
    """Returns where compiled programs are kept; None for a user without a home directory."""
    if os.environ.get("XDG_CACHE_HOME"):
        return pathlib.Path(os.environ["XDG_CACHE_HOME"]) / "pfljax"
    try:
        return pathlib.Path.home() / ".cache" / "pfljax"
    except RuntimeError:
        return None


def join_processes(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run; on SLURM, Cloud TPU and MPI, JAX detects all three itself."""
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
            f"The processes could not be joined ({error}); outside SLURM, MPI and Cloud TPU name "
            "--coordinator=HOST:PORT, --num_processes and --process_id."
        ) from error


@contextlib.contextmanager
def one_sentence_for_lost_processes() -> Iterator[None]:
    """Turns what XLA raises when another process of the run is gone into a `UserError`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not _LOST.search(str(error)):
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            f"Another process of this run ended or cannot be reached ({lines[0][:200]}); see what "
            "it said, and start all processes again with --resume."
        ) from error


def devices(wanted: int) -> Sequence[jax.Device]:
    """Returns the devices of a run.

    Args:
      wanted: how many, over all processes; 0 means all there are.

    Raises:
      UserError: there are fewer, or several processes would not all take part.
    """
    present = jax.devices()
    if wanted > len(present):
        raise UserError(
            f"config.engine.devices is {wanted}, but there are {len(present)} "
            f"{present[0].platform} devices; lower it, or take 0 for all."
        )
    if wanted and wanted < len(present) and jax.process_count() > 1:
        raise UserError(
            f"config.engine.devices is {wanted}, but {jax.process_count()} processes hold "
            f"{len(present)} devices; with several processes take 0 for all."
        )
    return present[: wanted or len(present)]


def peak_host_bytes() -> int | None:
    """Returns the most memory this process has held; None where the system does not say."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_bytes(
    devices: Sequence[jax.Device], programs: Sequence[mapping.Program]
) -> int | None:
    """Returns the most memory one device has held; where it does not say (CPU), XLA's plan."""
    peaks = [
        (device.memory_stats() or {}).get("peak_bytes_in_use")
        for device in devices
        if device.process_index == jax.process_index()
    ]
    peaks = [peak for peak in peaks if peak is not None]
    peaks = peaks or [program.device_bytes for program in programs if program.device_bytes]
    return max(peaks, default=None)


class CompilationCounter:
    """Counts the XLA programs compiled while it is open."""

    def __init__(self):
        self.programs = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            self.programs += 1

    def close(self) -> None:
        """Stops counting."""
        jax.monitoring.unregister_event_duration_listener(self._listen)
