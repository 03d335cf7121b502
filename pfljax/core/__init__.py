"""What methods and the engine are written in: types, client data, local training and uploads."""

from pfljax.core import params, ranges, tree
from pfljax.core.client_data import Batch, ClientData, mean_over
from pfljax.core.local_training import (
    LocalTraining,
    Objective,
    Trained,
    descend,
    for_each_batch,
    pulled_towards,
    steps_per_epoch,
    train,
)
from pfljax.core.ranges import above, at_least, between, check_hyperparameters
from pfljax.core.types import (
    Algorithm,
    ClientOutput,
    ClientProfile,
    Cohort,
    Context,
    FederatedState,
    Params,
    Path,
    Population,
    PyTree,
    Task,
    Uploads,
)
from pfljax.core.uploads import Weighted, mean, shares, weighted

__all__ = [
    "Algorithm",
    "Batch",
    "ClientData",
    "ClientOutput",
    "ClientProfile",
    "Cohort",
    "Context",
    "FederatedState",
    "LocalTraining",
    "Objective",
    "Params",
    "Path",
    "Population",
    "PyTree",
    "Task",
    "Trained",
    "Uploads",
    "Weighted",
    "above",
    "at_least",
    "between",
    "check_hyperparameters",
    "descend",
    "for_each_batch",
    "mean",
    "mean_over",
    "params",
    "pulled_towards",
    "ranges",
    "shares",
    "steps_per_epoch",
    "train",
    "tree",
    "weighted",
]
