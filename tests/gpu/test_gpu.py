"""What has to hold on a GPU: of the engine, of evaluation, and of a search for an L0."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_but_wrong.l0.find import FindOptions, find_l0
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.training.log import TrainingLog
from sparse_but_wrong.training.loop import train_saes
from tests.l0.worlds import samples, small_world, stream
from tests.training import oracle
from tests.training.oracle import DEFAULTS, NORMALISED, assert_close, assert_identical, unlike_saes

N_STEPS = 60
BATCHES = oracle.recorded_batches(N_STEPS + 10)
NAMES = list(DEFAULTS)


def stack(name: str, device: torch.device, n: int = 3) -> list[Any]:
    return [sae.to(device) for sae in unlike_saes(name, n, **NORMALISED)]


def refilled(device: torch.device) -> Iterator[Tensor]:
    """The batches in one tensor on the CPU, overwritten while a GPU may still read it."""
    place = torch.empty_like(BATCHES[0], pin_memory=device.type == "cuda")
    for batch in BATCHES:
        yield place.copy_(batch)


def trained(saes: list[Any], **changes: Any) -> tuple[list[Any], TrainingLog]:
    copies = copy.deepcopy(saes)
    options = oracle.options_for(N_STEPS, dead_feature_window=5, log_every=20, **changes)
    log = train_saes(copies, refilled(saes[0].W_dec.device), options)
    assert {sae_log.trained_by for sae_log in log.saes} == {"engine"}
    return copies, log


@pytest.mark.parametrize("name", NAMES)
def test_saes_end_where_sae_lens_would_bring_them(
    name: str, device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    saes, batches = stack(name, device), [batch.to(device) for batch in BATCHES]
    options = oracle.options_for(N_STEPS, dead_feature_window=5)
    stacked, _ = trained(saes)
    assert caplog.messages == [], "no graph was captured"
    for sae, ours in zip(saes, stacked, strict=True):
        assert_close(ours, oracle.train_with_sae_lens(sae, batches, options))


@pytest.mark.parametrize("name", NAMES)
def test_company_and_repetition_make_no_difference(name: str, device: torch.device) -> None:
    saes = stack(name, device)
    (first, *_), (again, *_) = trained(saes)[0], trained(saes)[0]
    assert_identical(first, again)
    # Alone a product has another shape, and on a GPU so has its rounding.
    assert_close(first, trained(saes[:1])[0][0])


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str, device: torch.device) -> None:
    saes = stack(name, device)
    (_, plain), (cast_saes, cast) = trained(saes), trained(saes, autocast=True)
    for sae, ours, theirs in zip(cast_saes, cast.saes, plain.saes, strict=True):
        assert {parameter.dtype for parameter in sae.parameters()} == {torch.float32}
        # Eight bits of mantissa are 0.4 %, and latents next to their threshold fire or do not.
        assert ours.columns["mse_loss"] == pytest.approx(theirs.columns["mse_loss"], rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_is_that_of_the_cpu(name: str, device: torch.device) -> None:
    saes, x = trained(stack(name, device))[0], torch.cat(BATCHES[:20])
    there = evaluate(saes, x.to(device))
    here = evaluate([copy.deepcopy(sae).to("cpu") for sae in saes], x)
    for ours, theirs in zip(there, here, strict=True):
        assert ours.l0 == pytest.approx(theirs.l0, rel=1e-3)
        for metric in ("mse", "variance_explained", "c_dec", "c_enc"):
            assert getattr(ours, metric) == pytest.approx(getattr(theirs, metric), rel=1e-4)
        assert ours.projections == pytest.approx(theirs.projections, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_an_l0_is_found(device: torch.device, autocast: bool) -> None:
    options = FindOptions(
        coarse_steps=300,
        n_coarse=4,
        fine_steps=300,
        fine_factors=(0.7, 1.0),
        n_seeds=1,
        evaluation_samples=4_096,
        learning_batches=60,
        reinit_dead_every=50,
        lr=3e-3,
        progress=False,
        device=str(device),
        autocast=autocast,
    )
    world = small_world()
    found = find_l0(stream(world, batch_size=256), 20, options)
    assert found.l0 == pytest.approx(samples(world, 100_000)[1], rel=0.02)
    assert found.sae is not None
    directions = found.sweep.counts[0].directions
    assert {found.sae.W_dec.device, directions.rows.device, directions.bias.device} == {device}
