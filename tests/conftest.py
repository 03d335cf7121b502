"""Four CPU devices for every test; compiled programs are dropped after each file."""

import os
import pathlib
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # the shared fixtures of federation.py

jax.config.update("jax_num_cpu_devices", 4)
# The binaries that tests start share a compilation cache. The tests' own process writes none: with
# hundreds of programs alive, JAX 0.10.2 has crashed while it serialized one.
_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(
    pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "pfljax-tests"
)
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_enable_compilation_cache", False)


@pytest.fixture(scope="module", autouse=True)
def drop_compiled_programs():
    """Every compiled program holds memory maps, of which a process may have some 65,000."""
    yield
    jax.clear_caches()
