"""A Ray cluster of two raylets on this machine, one CPU each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from ray.cluster_utils import Cluster as Raylets

from sparse_but_wrong.cluster.units import Cluster, connected

SMALL: Any = {"num_cpus": 1, "object_store_memory": 80 * 10**6, "include_dashboard": False}
# Or it takes half a minute until the head is sure that a node is gone.
QUICK = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}


@pytest.fixture(scope="package")
def raylets() -> Iterator[Raylets]:
    """The head, and what starts more."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        # Of /dev/null, which Ray opens for the processes that it starts.
        warnings.simplefilter("ignore", ResourceWarning)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = Raylets(True, head_node_args={**SMALL, "_system_config": QUICK})
        yield started
        started.shutdown()


@pytest.fixture(scope="package")
def cluster(raylets: Raylets) -> Iterator[Cluster]:
    """Both, with this process as their driver. All tests share the workers, which start slowly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        raylets.add_node(**SMALL)
        with connected(str(raylets.address)) as driver:
            yield driver
