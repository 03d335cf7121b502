"""All methods on Fashion-MNIST in PFLlib's two scenarios of label skew, 20 clients, MLP."""

import pathlib
import runpy

from pfljax.algorithms import ALGORITHMS

HERE = pathlib.Path(__file__).parent

_SCENARIOS = {
    "dirichlet": {},
    "two_classes": {
        "data": {"partition": "pathological", "classes_per_client": 2, "balanced": False},
    },
}


def get_config(scenario: str = ""):
    config = runpy.run_path(str(HERE / "fashion_mnist_methods.py"))["get_config"]()
    config.rounds = 30
    config.checkpoint_every = 0
    config.algorithms = tuple(ALGORITHMS)
    config.data.server_fraction = 0.02  # for FedDF and FedMD, and not used by the other methods
    config.per_method.fedbn = {"model": {"name": "mlp_bn"}}
    if scenario:
        config.update(_SCENARIOS[scenario])
    else:
        config.scenarios = _SCENARIOS
    return config
