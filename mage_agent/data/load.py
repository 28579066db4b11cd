"""`load_dataset`: whatever the user has -> one TED TensorDict, checked."""

from __future__ import annotations

import os
from pathlib import Path

import minari
from tensordict import TensorDict, TensorDictBase

from mage_agent.data.checks import check_dataset
from mage_agent.data.minari import open_minari, read_minari
from mage_agent.data.ted import Bounds


def load_dataset(
    source: str | os.PathLike[str] | minari.MinariDataset | TensorDictBase,
    *,
    discount: float = 0.99,
    download: bool = True,
    action_low: Bounds = None,
    action_high: Bounds = None,
) -> TensorDict:
    """Load an offline dataset."""
    if not 0.0 < discount <= 1.0:
        raise ValueError(f"discount must be in (0, 1], got {discount}")
    bounds = {"action_low": action_low, "action_high": action_high}
    if isinstance(source, str) and Path(source).suffix not in (".hdf5", ".h5"):
        source = open_minari(source, download=download)
    if isinstance(source, minari.MinariDataset):
        dataset = read_minari(source, discount=discount, **bounds)
    else:
        raise TypeError(type(source))
    check_dataset(dataset)
    return dataset
