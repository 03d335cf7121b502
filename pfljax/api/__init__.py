"""The public functions of `pfljax`: fit, compare and sweep, results, models, extensions."""

from pfljax.api.client_model import ClientModel, load_model
from pfljax.api.clients import compare_clients
from pfljax.api.register import register_dataset, register_method, register_metric, register_model
from pfljax.api.results import Comparison, Run, Sweep, open_run
from pfljax.api.training import compare, fit, sweep
from pfljax.data import (
    from_arrays,
    from_csv,
    from_frame,
    from_hugging_face,
    from_parquet,
    pool_from_arrays,
)
from pfljax.data import (
    load as load_dataset,
)
from pfljax.extensions import import_file

__all__ = [
    "ClientModel",
    "Comparison",
    "Run",
    "Sweep",
    "compare",
    "compare_clients",
    "fit",
    "from_arrays",
    "from_csv",
    "from_frame",
    "from_hugging_face",
    "from_parquet",
    "import_file",
    "load_dataset",
    "load_model",
    "open_run",
    "pool_from_arrays",
    "register_dataset",
    "register_method",
    "register_metric",
    "register_model",
    "sweep",
]
