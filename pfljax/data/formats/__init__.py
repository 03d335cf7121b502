"""Federated data sets on disk whose clients are given: PFLlib's directories and pfljax's file."""

from __future__ import annotations

from pfljax.data.formats.npz import load_npz, save_npz
from pfljax.data.formats.pfllib import load_pfllib

__all__ = ["load_npz", "load_pfllib", "save_npz"]
