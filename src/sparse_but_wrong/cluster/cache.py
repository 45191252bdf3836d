"""Caching a language model's activations on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sparse_but_wrong import atomic
from sparse_but_wrong.activations.cache import write_part
from sparse_but_wrong.activations.manifest import Cache, read_cache
from sparse_but_wrong.activations.shards import split_into_parts
from sparse_but_wrong.cluster.units import Cluster, Unit
from sparse_but_wrong.untrusted import usable_device


def write_parts_on(
    cluster: Cluster, source: Mapping[str, Any], progress: bool, folder: Path, cache: Cache
) -> None:
    """Have workers write in advance what they can of a cache; the driver writes the rest.

    Args:
        source: the model and the text: those arguments of `write_part` that have to be named.
        progress: show a bar for each part.
        folder, cache: as `cache_activations` gives them to its `write_parts`.
    Raises:
        ValueError: as `Cluster.run`; the shards that are written are kept.
    """
    gpus = int(usable_device(source["device"]).type == "cuda")
    per_shard = cache.sequences_per_shard * (cache.context_size - cache.skip_positions)
    units = [
        Unit(
            f"sequences from {firsts[0]:,}",
            partial(write_part, part, firsts, cache, **source),
            partial(_n_samples, part),
            len(firsts) * per_shard,
        )
        for part, firsts in split_into_parts(folder, cache, cluster.n_slots(gpus)).items()
    ]
    for _ in cluster.run(units, folder, gpus, progress=progress):
        pass
    atomic.remove_leftovers(folder)  # of workers that were killed


def _n_samples(part: Path) -> int:
    try:
        return read_cache(part).n_samples
    except (OSError, ValueError):
        return 0
