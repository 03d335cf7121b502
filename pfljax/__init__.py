"""pfljax: personalized federated learning, a whole round in one XLA program.

The public names are those of `__all__`; they are imported from `pfljax.api` at their first use, so
that `import pfljax` is fast and does not start JAX. Authors of methods also import `pfljax.core`
and `pfljax.ops`.
"""

import importlib

__version__ = "0.1.0"

_MODULES = {
    "pfljax.api": (
        *("fit", "compare", "sweep", "compare_clients", "open_run", "load_model"),
        *("Run", "Comparison", "Sweep", "ClientModel"),
        *("load_dataset", "from_arrays", "from_frame", "from_csv", "from_parquet"),
        *("from_hugging_face", "pool_from_arrays"),
        *("register_method", "register_model", "register_dataset", "register_metric"),
        "import_file",
    ),
    "pfljax.training.study.config": ("default_config",),
    "pfljax.data": ("FederatedDataset", "describe"),
    "pfljax.core": ("Algorithm", "ClientOutput", "Context", "LocalTraining", "Task"),
    "pfljax.models": ("Model", "from_flax"),
    "pfljax.errors": ("DivergedError", "UserError"),
}
_SOURCE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*_SOURCE_OF]


def __getattr__(name: str):
    if name not in _SOURCE_OF:
        raise AttributeError(f"module 'pfljax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_SOURCE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
