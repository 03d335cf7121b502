"""Settings made before JAX is first used, tested in a separate process."""

import os
import subprocess
import sys

import jax
import pytest

from pfljax.errors import UserError
from pfljax.training.run import runtime

_PROGRAM = """
import os
from pfljax.errors import UserError
from pfljax.training.run import runtime
runtime.start(devices=2)
import jax
print(os.environ.get("XLA_FLAGS", ""), os.environ.get("NPROC"), jax.device_count(), sep=";")
"""


def settled(tmp_path, **environment):
    kept = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "NPROC")}
    kept |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path), **environment}
    answer = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=kept, capture_output=True, text=True, check=True
    )
    return answer.stdout.strip().split(";")


def test_cpus_compute_on_a_thread_for_each_device_with_the_longest_vectors(tmp_path):
    flags, threads, devices = settled(tmp_path)
    assert flags.split() == [f"{flag}={value}" for flag, value in runtime.CPU_FLAGS.items()]
    assert (threads, devices) == ("1", "2")


def test_what_the_user_has_set_stays(tmp_path):
    own = "--xla_cpu_prefer_vector_width=256"
    flags, threads, _ = settled(tmp_path, XLA_FLAGS=own, NPROC="3")
    assert flags.split() == [own, "--xla_cpu_multi_thread_eigen=false"]
    assert threads == "3"


@pytest.mark.parametrize("plugin", [True, False])
def test_other_devices_are_expected_where_a_plugin_is_installed(monkeypatch, plugin):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(
        runtime.importlib.metadata, "entry_points", lambda group: ["a device"] * plugin
    )
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    assert runtime._only_cpu() is not plugin


def test_a_system_without_the_resource_module(monkeypatch):
    """Windows has none."""
    program = (
        "import sys; sys.modules['resource'] = None\n"
        "from pfljax.training.run import runtime\n"
        "from pfljax.training.study import experiment\n"
        "print(runtime.peak_host_bytes())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "None"
    assert runtime.peak_host_bytes() > 2**20


def test_a_user_without_a_home_directory_has_no_cache(monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(runtime.pathlib.Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert runtime._cache_directory() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert runtime._cache_directory() == tmp_path / "pfljax"


def test_a_lost_process_gives_a_one_line_error(monkeypatch):
    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    with pytest.raises(jax.errors.JaxRuntimeError), runtime.one_sentence_for_lost_processes():
        raise lost
    monkeypatch.setattr(runtime.jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="process .*ended"):
        with runtime.one_sentence_for_lost_processes():
            raise lost
    with pytest.raises(jax.errors.JaxRuntimeError):
        with runtime.one_sentence_for_lost_processes():
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
