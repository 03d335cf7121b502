"""Federated data sets on disk with given clients: PFLlib's directories and pfljax's formats."""

from __future__ import annotations

from pfljax.data.formats.npz import load_npz, save_npz
from pfljax.data.formats.pfllib import load_pfllib
from pfljax.data.formats.store import StoreWriter, load_store

__all__ = ["StoreWriter", "load_npz", "load_pfllib", "load_store", "save_npz"]
