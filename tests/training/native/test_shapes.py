"""The compiled loops where shapes are extreme."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.native import bindings
from tests.training import oracle, topk_family


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_far_more_dead_latents_than_dimensions(architecture: str) -> None:
    if bindings.kernels() is None:
        pytest.skip("this machine has no C++ compiler, so there is nothing compiled")
    ends = []
    for compiled in (True, False):
        settings: dict[str, Any] = {"d_sae": 1500, "k": 2}
        if architecture == "matryoshka":
            settings["matryoshka_widths"] = [300, 1500]
        sae = topk_family.make_sae(architecture, **settings)
        options = oracle.options_for(8, dead_feature_window=2, log_every=1, compiled=compiled)
        log = train_saes([sae], iter(oracle.recorded_batches(8)), options)
        assert log.saes[0].diverged_at is None
        assert log.saes[0].columns["dead_latents"][-1] > 1100
        ends.append(oracle.parameters(sae))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("d_in", "d_sae"), [(2, 1), (3, 17), (17, 16), (33, 70)])
@pytest.mark.parametrize("batch", [1, 65])
def test_shapes_that_fill_no_vector_and_no_tile(d_in: int, d_sae: int, batch: int) -> None:
    if bindings.kernels() is None:
        pytest.skip("this machine has no C++ compiler, so there is nothing compiled")
    batches = oracle.recorded_batches(6, batch=batch, d_in=d_in)
    ends = []
    for compiled in (True, False):
        saes = [
            oracle.make_sae(d_in=d_in, d_sae=d_sae),
            topk_family.make_sae("batchtopk", d_in=d_in, d_sae=d_sae, k=1),
            topk_family.make_sae("topk", d_in=d_in, d_sae=d_sae, k=1),
        ]
        options = oracle.options_for(6, total_training_samples=6 * batch, compiled=compiled)
        train_saes(saes, iter(batches), options)
        ends.append([oracle.parameters(sae) for sae in saes])
    for mine, wanted in zip(*ends, strict=True):
        for name, value in mine.items():
            torch.testing.assert_close(value, wanted[name], atol=1e-4, rtol=1e-4)
