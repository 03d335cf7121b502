"""Networks; the only package that imports flax."""

from pfljax.models.model import Model, compute_in, from_flax
from pfljax.models.networks import MODELS, cnn, logistic, mlp, mlp_bn

__all__ = [
    "MODELS",
    "Model",
    "cnn",
    "compute_in",
    "from_flax",
    "logistic",
    "mlp",
    "mlp_bn",
]
