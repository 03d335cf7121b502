"""Adapters: a few trained arrays beside a network that may be frozen.

`attach` adds adapters of one kind to the layers of any network; `tasks.freeze` then makes the task
whose params are the adapters', so that every method trains them unchanged.
"""

from __future__ import annotations

from collections.abc import Callable

from pfljax.models.adapters.dense import (
    basis,
    bias,
    hidden_map,
    houlsby,
    ia3,
    lora,
    lora_mixture,
    user_token,
)
from pfljax.models.adapters.overlay import Kind, Layer, attach, layers_of
from pfljax.models.adapters.tokens import p_tuning, prefix, prompt

__all__ = [
    "KINDS",
    "Kind",
    "Layer",
    "attach",
    "basis",
    "bias",
    "hidden_map",
    "houlsby",
    "ia3",
    "layers_of",
    "lora",
    "lora_mixture",
    "p_tuning",
    "prefix",
    "prompt",
    "user_token",
]

KINDS: dict[str, Callable[..., Kind]] = {
    "lora": lora,
    "ia3": ia3,
    "bias": bias,
    "houlsby": houlsby,
    "prefix": prefix,
    "prompt": prompt,
    "p_tuning": p_tuning,
    "user_token": user_token,
    "hidden_map": hidden_map,
    "basis": basis,
    "lora_mixture": lora_mixture,
}
