"""Networks, and the tasks made of them; the only room that imports flax."""

from pfljax.models.classification import classification
from pfljax.models.model import Model, from_flax
from pfljax.models.networks import MODELS, cnn, logistic, mlp, mlp_bn

__all__ = ["MODELS", "Model", "classification", "cnn", "from_flax", "logistic", "mlp", "mlp_bn"]
