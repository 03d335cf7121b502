"""The vocabulary of the library: types, local training, messages, tree arithmetic."""

from pfljax.core import averaging, partition, tree
from pfljax.core.local import (
    LocalTraining,
    Objective,
    Trained,
    descend,
    for_each_batch,
    steps_per_epoch,
    train,
)
from pfljax.core.messages import Weighted, mean, weighted
from pfljax.core.types import (
    Algorithm,
    Batch,
    ClientData,
    ClientOutput,
    ClientProfile,
    Cohort,
    Context,
    FederatedState,
    Model,
    Path,
    Population,
    PyTree,
    Task,
    Uploads,
)

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
    "Model",
    "Objective",
    "Path",
    "Population",
    "PyTree",
    "Task",
    "Trained",
    "Uploads",
    "Weighted",
    "averaging",
    "descend",
    "for_each_batch",
    "mean",
    "partition",
    "steps_per_epoch",
    "train",
    "tree",
    "weighted",
]
