"""Tasks: what a network is trained for, and the metrics by which clients are compared.

One file a kind; `TASKS` names them all. A task is made of a network of `pfljax.models`.
"""

from __future__ import annotations

from collections.abc import Callable

from pfljax.core import Task
from pfljax.tasks.classification import classification
from pfljax.tasks.denoising import denoising
from pfljax.tasks.freeze import freeze
from pfljax.tasks.from_network import from_network
from pfljax.tasks.language import next_token
from pfljax.tasks.multi_label import multi_label
from pfljax.tasks.preference import preference
from pfljax.tasks.ranking import ranking
from pfljax.tasks.recommendation import recommendation
from pfljax.tasks.regression import regression

__all__ = [
    "TASKS",
    "classification",
    "denoising",
    "freeze",
    "from_network",
    "multi_label",
    "next_token",
    "preference",
    "ranking",
    "recommendation",
    "regression",
]

TASKS: dict[str, Callable[..., Task]] = {
    "classification": classification,
    "regression": regression,
    "rating": regression,
    "next_token": next_token,
    "multi_label": multi_label,
    "ranking": ranking,
    "preference": preference,
    "recommendation": recommendation,
    "denoising": denoising,
}
