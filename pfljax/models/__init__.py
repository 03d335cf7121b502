"""Networks, and the tasks made of them; the only room that imports flax."""

from pfljax.models.model import Model, compute_in, from_flax
from pfljax.models.networks import MODELS, cnn, logistic, mlp, mlp_bn
from pfljax.models.tasks import TASKS, classification, multi_label, next_token, ranking, regression

__all__ = [
    "MODELS",
    "TASKS",
    "Model",
    "classification",
    "cnn",
    "compute_in",
    "from_flax",
    "logistic",
    "mlp",
    "mlp_bn",
    "multi_label",
    "next_token",
    "ranking",
    "regression",
]
