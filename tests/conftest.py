"""Four CPU devices for every test, and a compilation cache that outlives the run."""

import os
import pathlib
import sys

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # the shared fixtures of federation.py

jax.config.update("jax_num_cpu_devices", 4)
_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(
    pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "pfljax-tests"
)
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
