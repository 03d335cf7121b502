"""Four CPU devices for every test; compiled programs are dropped after each file."""

import os
import pathlib
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # support modules, such as federation.py

# One piece of code for each program instead of 32: hundreds of programs are alive at once, every
# piece holds memory maps, and a process that runs out of its some 65,000 crashes.
_MANY_MAPS = 25_000
_ONE_PIECE = "--xla_cpu_parallel_codegen_split_count=1"
# Programs that run for milliseconds are not worth LLVM's best code, which takes a quarter longer.
_QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_FLAGS} {_ONE_PIECE} {_QUICKLY}".strip()
jax.config.update("jax_num_cpu_devices", 4)
# Tests compile the same small programs again and again. Each process of pytest-xdist has a cache of
# its own, with the binaries that it starts: JAX reads files that another process is writing.
_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(
    pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "pfljax-tests"
)
_CACHE = str(pathlib.Path(_CACHE) / os.environ.get("PYTEST_XDIST_WORKER", "main"))
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_addoption(parser):
    parser.addoption(
        "--import-file",
        action="append",
        default=[],
        help="A Python file with methods of yours, for which the contract tests run too.",
    )


def pytest_configure(config):
    from pfljax import extensions

    for path in config.getoption("--import-file"):
        extensions.import_file(path)


@pytest.fixture(scope="module", autouse=True)
def drop_compiled_programs():
    """Gives the memory maps of a file's programs back."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def forget_registered_names():
    """Removes the methods, networks, data sets and metrics that a test registers."""
    from pfljax import data, extensions, metrics, models  # after the flags above are set
    from pfljax.algorithms import ALGORITHMS

    registries = [
        *(ALGORITHMS, models.MODELS, data.SOURCES, metrics.METRICS),
        extensions._IMPORTED,
    ]
    before = [dict(registry) for registry in registries]
    yield
    for registry, kept in zip(registries, before, strict=True):
        registry.clear()
        registry.update(kept)


@pytest.fixture(autouse=True)
def drop_compiled_programs_in_time():
    """Does so within a file too, long before a process has as many as it may."""
    yield
    maps = pathlib.Path("/proc/self/maps")  # on Linux alone, as is the limit
    if maps.exists() and maps.read_bytes().count(b"\n") > _MANY_MAPS:
        jax.clear_caches()
