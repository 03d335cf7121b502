"""x"""

from pfljax.training.config import default_config


def get_config():
    config = default_config()
    config.data.name = "fashion_mnist"
    return config
