"""From a stream to an L0, end to end, on a small world at a small budget."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import pytest
import torch
from sae_lens import BatchTopKTrainingSAEConfig, JumpReLUTrainingSAE

from sparse_but_wrong.l0.find import FindOptions, find_l0
from sparse_but_wrong.l0.recommend import L0Recommendation, recommend_l0
from sparse_but_wrong.l0.sweep import measure_sweep
from sparse_but_wrong.training.lens import inference_copy
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.make import make_saes
from sparse_but_wrong.training.options import TrainOptions
from tests.l0.worlds import samples, small_world, stream

SMALL = FindOptions(
    batch_size=256,
    coarse_steps=300,
    n_coarse=4,
    fine_steps=300,
    fine_factors=(0.7, 1.0, 1.4),
    evaluation_samples=8_192,
    learning_batches=100,
    reinit_dead_every=50,
    lr=3e-3,
    progress=False,
)


def search(architecture: str = "batchtopk", d_sae: int = 20, seed: int = 0) -> L0Recommendation:
    options = replace(SMALL, architecture=architecture, seed=seed)
    return find_l0(stream(small_world(), seed=seed, batch_size=256), d_sae, options)


@pytest.fixture(scope="module")
def found() -> L0Recommendation:
    return search()


def test_the_truth_lies_in_the_interval(found: L0Recommendation) -> None:
    _, truth = samples(small_world(), 100_000)
    assert found.l0 == pytest.approx(truth, rel=0.02)
    assert found.interval is not None
    assert found.interval[0] < truth < found.interval[1]
    assert found.doubts == ()
    assert found.sweep.counts[0].presence.n_directions == 20


def test_the_sae_that_comes_with_it_has_that_l0_and_the_true_features(
    found: L0Recommendation,
) -> None:
    assert found.sae is not None
    world = small_world()
    x, _ = samples(world, 4_096)
    with torch.no_grad():
        l0 = (inference_copy(found.sae).encode(x) > 0).sum(1).float().mean().item()
        cosines = torch.nn.functional.normalize(found.sae.W_dec, dim=1) @ world.directions
    assert l0 == pytest.approx(found.l0, rel=0.05)
    assert int((cosines.max(0).values > 0.99).sum()) >= 19


def test_the_sweep_is_there_as_evidence(found: L0Recommendation) -> None:
    table = found.sweep.table
    # Four coarse and three fine L0s of two seeds each, and three that start from directions.
    assert len(table) == 4 * 2 + 3 * 2 + 3
    assert set(table["group"]) == {"seed_0", "seed_1", "directions"}
    assert table["sae_id"].is_unique
    assert bool(table["l0"].between(0, 20).all())
    assert {"c_dec", "s_0", "s_19"} <= set(table.columns)


def test_two_seeds_agree_within_their_intervals(found: L0Recommendation) -> None:
    other = search(seed=1)
    assert found.l0 is not None
    assert other.l0 is not None
    assert other.interval is not None
    assert other.interval[0] <= found.l0 <= other.interval[1]
    assert other.l0 != found.l0


def test_jumprelu(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    found = search("jumprelu")
    _, truth = samples(small_world(), 100_000)
    assert found.counted == pytest.approx(truth, rel=0.02)
    assert found.l0 is None or isinstance(found.sae, JumpReLUTrainingSAE)


def test_matryoshka_saes_have_widths_without_being_told() -> None:
    found = search("matryoshka_batchtopk")
    assert found.counted == pytest.approx(search().counted, rel=0.02)
    assert found.sae is not None
    assert found.sae.cfg.matryoshka_widths == [5, 10, 20]


def test_too_narrow_saes_are_declined_and_the_width_is_named() -> None:
    found = search(d_sae=14)
    assert found.l0 is None
    assert found.sae is None
    assert any("too narrow" in doubt and "Use d_sae ≥ 20" in doubt for doubt in found.doubts)


def test_saes_trained_elsewhere() -> None:
    world = small_world()
    ks = (2.5, 4.0, 5.5)
    saes = make_saes(
        [BatchTopKTrainingSAEConfig(d_in=30, d_sae=20, k=k) for k in ks], seeds=range(3)
    )
    options = TrainOptions(
        total_training_samples=400 * 256,
        train_batch_size_samples=256,
        lr=3e-3,
        reinit_dead_every=50,
        progress=False,
    )
    train_saes(saes, stream(world, batch_size=256), options)
    before = [sae.W_dec.detach().clone() for sae in saes]
    sweep = measure_sweep(
        saes, stream(world, seed=5), evaluation_samples=8_192, learning_batches=100
    )
    found = recommend_l0(sweep)
    _, truth = samples(world, 100_000)
    assert found.l0 == pytest.approx(truth, rel=0.02)
    assert found.sae is None
    assert list(sweep.table["l0"]) == pytest.approx(ks, rel=0.1)
    for sae, weights in zip(saes, before, strict=True):
        assert torch.equal(sae.W_dec, weights)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"FindOptions\.n_coarse must be at least 1, got 0"):
        FindOptions(n_coarse=0)
    with pytest.raises(ValueError, match=r"with 1\.0 among them"):
        FindOptions(fine_factors=(0.5, 2.0))
    source = stream(small_world(), batch_size=256)
    with pytest.raises(
        ValueError, match="L0 of 'temporal' SAEs cannot be set; use one of batchtopk"
    ):
        replace(SMALL, architecture="temporal")
    with pytest.raises(ValueError, match="d_sae must be at least 2, got 1"):
        find_l0(source, 1, SMALL)
    with pytest.raises(ValueError, match="8192 samples drawn from the source are all the same"):
        find_l0(itertools.repeat(torch.ones(256, 6)), 20, SMALL)
    with pytest.raises(TypeError, match="yields tuple objects; give one that yields tensors"):
        find_l0(zip(source, strict=True), 20, SMALL)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="the source ended before"):
        find_l0(itertools.islice(source, 3), 20, SMALL)
    with pytest.raises(TypeError, match="source"):
        find_l0([torch.zeros(3, 4)], 20, SMALL)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="there are no SAEs"):
        measure_sweep([], source)
    cfgs = [BatchTopKTrainingSAEConfig(d_in=30, d_sae=d, k=2) for d in (8, 9)]
    with pytest.raises(ValueError, match=r"differ in \(d_sae, d_in\): \(8, 30\), \(9, 30\)"):
        measure_sweep(make_saes(cfgs, seeds=[0, 0]), source)
    with pytest.raises(ValueError, match="there are 1 SAEs but 2 ids"):
        measure_sweep(make_saes(cfgs[:1], seeds=[0]), source, ids=["a", "b"])
    nan = iter([torch.full((9_000, 30), torch.nan)])
    with pytest.raises(ValueError, match="not finite"):
        find_l0(nan, 20, SMALL)
