"""Installs pfljax; third_party/README.md gives the reason for each requirement."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "pfljax/__init__.py").read_text()).group(1)

setuptools.setup(
    name="pfljax",
    version=VERSION,
    description="Personalized federated learning in JAX: a whole round in one XLA program.",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # The configs are a part of the package, so that commands find them outside the source tree.
    packages=[*setuptools.find_packages(include=["pfljax", "pfljax.*"]), "pfljax.configs"],
    package_dir={"pfljax.configs": "configs"},
    entry_points={"console_scripts": ["pfljax = pfljax.cli.main:main"]},
    package_data={"pfljax": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "tensorflow-datasets>=4.9.10",
        "array_record>=0.8",
        "importlib_resources>=6",
        "ml_collections>=1.1",
        "absl-py>=2.3",
        "numpy>=2",
        "scipy>=1.13",
        "scikit-learn>=1.5",
        "threadpoolctl>=3.5",
        "pillow>=11",
        "matplotlib>=3.9",
        "rich>=13",
        "tensorboardX>=2.6.4",
        "pandas>=2.3",
        "pyarrow>=19",
        "safetensors>=0.5",
    ],
    extras_require={
        "test": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.12"],
        "peers": ["torch>=2.6", "fedjax>=0.0.17", "drjax>=0.2.1"],
        "peft": ["torch>=2.6", "transformers>=5", "peft>=0.21"],
        "docs": ["sphinx>=8", "myst-nb>=1.2"],
        "notebooks": ["jupyterlab>=4", "ipywidgets>=8"],
    },
)
