"""From a stream to an L0, end to end, on a small world at a small budget."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAEConfig, JumpReLUTrainingSAE

from sparse_but_wrong.l0 import find
from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.l0.find import FindOptions, find_l0
from sparse_but_wrong.l0.recommend import L0Recommendation, recommend_l0
from sparse_but_wrong.l0.sweep import Count, evaluate_sweep
from sparse_but_wrong.sae_lens_compat import inference_copy
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.make import make_saes
from sparse_but_wrong.training.options import TrainOptions
from tests.l0.evidence import presence
from tests.l0.worlds import samples, small_world, stream, true_directions

SMALL = FindOptions(
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


@functools.cache
def search(
    architecture: str = "batchtopk", d_sae: int = 20, seed: int = 0, l0: float = 4.0
) -> L0Recommendation:
    options = replace(SMALL, architecture=architecture, seed=seed)
    if architecture == "topk":
        # Between two k; one more SAE is trained, and misses too.
        options = replace(options, fine_factors=(0.7, 0.9, 1.0, 1.1, 1.4))
    return find_l0(stream(small_world(l0=l0), seed=seed, batch_size=256), d_sae, options)


def truth(l0: float = 4.0) -> float:
    return samples(small_world(l0=l0), 100_000)[1]


def l0_as_used(found: L0Recommendation, n_samples: int) -> float:
    assert found.sae is not None
    x, _ = samples(small_world(), n_samples)
    with torch.no_grad():
        return (inference_copy(found.sae).encode(x) > 0).sum(1).float().mean().item()


def test_the_truth_lies_in_the_interval_and_the_sae_has_the_true_features() -> None:
    found = search()
    assert found.l0 == pytest.approx(truth(), rel=0.02)
    assert found.interval is not None
    assert found.interval[0] < truth() < found.interval[1]
    assert found.doubts == ()
    assert found.sweep.counts[0].presence.n_directions == 20
    assert found.sae is not None
    assert found.sae_l0 is not None
    assert found.interval[0] <= found.sae_l0 <= found.interval[1]
    assert found.sae_l0 in set(found.sweep.table["l0"])
    assert l0_as_used(found, 4_096) == pytest.approx(found.sae_l0, rel=0.05)
    rows = torch.nn.functional.normalize(found.sae.W_dec.detach(), dim=1)
    cosines = rows @ small_world().directions
    assert int((cosines.max(0).values > 0.99).sum()) >= 19


def test_the_sweep_is_there_as_evidence() -> None:
    sweep = search().sweep
    # Four coarse and three fine L0s of two seeds each, and three that start from directions.
    assert len(sweep.table) == 4 * 2 + 3 * 2 + 3
    assert set(sweep.table["group"]) == {"seed_0", "seed_1", "directions"}
    assert sweep.table["sae_id"].is_unique
    assert bool(sweep.table["l0"].between(0, 20).all())
    assert sweep.projections.shape == (len(sweep.table), 20)
    assert {"c_dec", "s_0"} <= set(sweep.wide().columns)
    assert sweep.wide()["s_19"].tolist() == sweep.projections[19].tolist()


def test_two_seeds_agree_within_their_intervals() -> None:
    found, other = search(), search(seed=1)
    assert other.interval is not None
    assert found.l0 is not None
    assert other.interval[0] <= found.l0 <= other.interval[1]
    assert other.l0 != found.l0


def test_jumprelu() -> None:
    found = search("jumprelu")
    # L0 sticks at the true one: no SAE goes below, though its target was lower.
    assert found.l0 == pytest.approx(truth(), rel=0.02)
    assert found.sweep.table["l0"].to_numpy(float).min() > 0.92 * truth()
    assert found.sweep.table["target_l0"].to_numpy(float).min() == 1.5
    assert "stay at this one" in found.reasons[-1]
    # The SAE is the one with the recommended L0 as its target, and has it where it is measured.
    assert isinstance(found.sae, JumpReLUTrainingSAE)
    by_id = found.sweep.table.set_index("sae_id")["l0"]
    assert found.sae_l0 == by_id[f"directions_{found.l0:.2f}"]
    assert l0_as_used(found, 8_192) == pytest.approx(found.sae_l0, rel=0.05)


def test_matryoshka_saes_have_widths_without_being_told() -> None:
    found = search("matryoshka_batchtopk")
    assert found.counted == pytest.approx(search().counted, rel=0.02)
    assert found.sae is not None
    assert found.sae.cfg.matryoshka_widths == [5, 10, 20]


def test_too_narrow_saes_are_declined_and_the_width_is_named() -> None:
    found = search(d_sae=14)
    assert (found.l0, found.sae) == (None, None)
    assert any("too narrow" in doubt and "Use d_sae ≥ 20" in doubt for doubt in found.doubts)


def test_an_sae_that_misses_the_l0_is_not_given() -> None:
    found = search("topk", l0=4.5)
    assert found.l0 == pytest.approx(truth(4.5), rel=0.02)
    assert (found.sae, found.sae_l0) == (None, None)
    last = found.sweep.table.iloc[-1]
    assert last["sae_id"] == f"last_directions_{found.l0:.2f}"
    assert f"has an L0 of {last['l0']:.2f}, outside the interval" in found.reasons[-1]


def test_one_more_sae_is_trained_where_none_has_the_l0(monkeypatch: pytest.MonkeyPatch) -> None:
    real = find._Search._from_directions

    def too_high(
        self: find._Search, stage: str, targets: list[float], directions: Directions
    ) -> find._Trained:
        higher = targets if stage == "last_directions" else [1.3 * t for t in targets]
        return real(self, stage, higher, directions)

    monkeypatch.setattr(find._Search, "_from_directions", too_high)
    found = search.__wrapped__()
    last = found.sweep.table.iloc[-1]
    assert last["sae_id"] == f"last_directions_{found.l0:.2f}"
    assert found.sae is not None
    assert found.sae_l0 == last["l0"] == pytest.approx(found.l0, rel=0.02)


def test_saes_that_are_too_wide_to_count_are_read_by_their_curves() -> None:
    options = replace(SMALL, count_up_to=19)
    found = find_l0(stream(small_world(), batch_size=256), 20, options)
    assert (found.l0, found.sae, found.counted, found.sweep.counts) == (None, None, None, ())
    assert len(found.sweep.table) == 4 * 2
    assert "the SAEs have 20 latents" in found.doubts[0]
    assert "up to 19 (count_up_to)" in found.doubts[0]
    assert found.reasons[0].startswith("By the curves alone: s_n^dec is smallest at")
    assert "worlds with known answers" in found.reasons[-1]
    assert [curve.metric for curve in found.curves] == ["c_dec", "s_5", "s_6", "s_7", "s_8", "s_9"]
    again = recommend_l0(found.sweep)
    assert (again.doubts, again.reasons) == (found.doubts, found.reasons)


@pytest.mark.parametrize("batch_size", [64, 256])
def test_steps_are_batches_of_the_source(batch_size: int) -> None:
    drawn = 0

    def counted() -> Iterator[torch.Tensor]:
        nonlocal drawn
        for batch in stream(small_world(), batch_size=batch_size):
            drawn += 1
            yield batch

    options = replace(SMALL, count_up_to=2, coarse_steps=40, evaluation_samples=1_024)
    find_l0(counted(), 20, options)
    # Those to measure on, those that the norm is estimated on, and the steps.
    assert drawn == 1_024 // batch_size + 40 + 40


def test_l0s_that_are_out_of_reach_are_not_trained_twice() -> None:
    held_out, _ = samples(small_world(), 256)
    options = replace(
        SMALL, n_seeds=1, fine_steps=2, fine_factors=(0.5, 1.0, 1.2, 1.4), progress=False
    )
    search_ = find._Search(stream(small_world(), batch_size=256), held_out, 256, 20, options)
    directions = true_directions(small_world())
    count = Count("by_hand", "seed_0", directions, presence(17.0), 5.0)
    fine, started = search_.around(count)
    # 1.2 and 1.4 times 17 are cut to the same.
    assert fine.ids == ["fine_8.50_seed_0", "fine_17.00_seed_0", "fine_19.60_seed_0"]
    assert len(started.saes) == 3


def test_saes_without_a_scale_start_in_the_units_of_the_activations() -> None:
    held_out = samples(small_world(), 256)[0] + 3.0
    directions = true_directions(small_world())
    biased = replace(directions, bias=torch.full((30,), 3.0))
    for normalisation, scale in (
        ("none", 1.0),
        ("expected_average_only_in", 30**0.5 / held_out.norm(dim=1).mean().item()),
    ):
        config = {"normalize_activations": normalisation}
        options = replace(SMALL, sae_config=config)
        search_ = find._Search(stream(small_world()), held_out, 256, 20, options)
        (sae,) = search_._make([4.0], [0])
        assert sae.cfg.normalize_activations == normalisation
        find._start_at(sae, biased, search_._scale())
        torch.testing.assert_close(sae.b_dec.detach(), torch.full((30,), 3.0 * scale))


def test_directions_are_learned_on_as_many_threads_as_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def count_nothing(*_: object, **__: object) -> tuple[()]:
        seen.append(torch.get_num_threads())
        return ()

    monkeypatch.setattr(find, "count_from", count_nothing)
    before = torch.get_num_threads()
    options = replace(SMALL, coarse_steps=2, learning_batches=1, threads=before + 1)
    find_l0(stream(small_world(), batch_size=256), 20, options)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


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
    sweep = evaluate_sweep(
        saes, stream(world, seed=5), evaluation_samples=8_192, learning_batches=100
    )
    found = recommend_l0(sweep)
    assert found.l0 == pytest.approx(truth(), rel=0.02)
    assert found.sae is None
    assert list(sweep.table["l0"]) == pytest.approx(ks, rel=0.1)
    for sae, weights in zip(saes, before, strict=True):
        assert torch.equal(sae.W_dec, weights)


NAN = torch.full((9_000, 30), torch.nan)


@pytest.mark.parametrize(
    ("source", "d_sae", "error", "message"),
    [
        ([torch.rand(3, 30)], 1, ValueError, "d_sae must be at least 2, got 1"),
        (torch.rand(300, 30), None, ValueError, "d_sae"),
        (itertools.repeat(torch.ones(256, 6)), 20, ValueError, "8192 samples .* all the same"),
        (itertools.repeat((torch.rand(3, 30),)), 20, TypeError, "yields tuple objects"),
        ([torch.rand(256, 30)] * 3, 20, ValueError, "the source ended"),
        ([NAN], 20, ValueError, "not finite"),
    ],
)
def test_activations_that_nothing_is_found_on(
    source: Any, d_sae: int | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        find_l0(source, d_sae, SMALL)


def test_saes_that_are_no_sweep() -> None:
    cfgs = [BatchTopKTrainingSAEConfig(d_in=30, d_sae=d, k=2) for d in (8, 9)]
    source = stream(small_world())
    with pytest.raises(ValueError, match="no SAEs"):
        evaluate_sweep([], source)
    with pytest.raises(ValueError, match=r"\(8, 30\), \(9, 30\)"):
        evaluate_sweep(make_saes(cfgs, seeds=[0, 0]), source)
    with pytest.raises(ValueError, match="1 SAEs but 2 ids"):
        evaluate_sweep(make_saes(cfgs[:1], seeds=[0]), source, ids=["a", "b"])


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("batchtopk", {}),
        ("jumprelu", {"apply_b_dec_to_input": False}),
        ("gated", {"apply_b_dec_to_input": False}),
    ],
)
def test_a_vector_added_to_all_activations_changes_nothing(
    architecture: str, config: dict[str, object]
) -> None:
    # Five times as long as the activations themselves.
    added = 10 * torch.nn.functional.normalize(torch.linspace(-1, 2, 30), dim=0)
    options = replace(SMALL, architecture=architecture, sae_config=config)

    def source() -> Iterator[torch.Tensor]:
        return stream(small_world(), batch_size=256)

    plain = search() if architecture == "batchtopk" else find_l0(source(), 20, options)
    moved = find_l0((batch + added for batch in source()), 20, options)
    assert plain.l0 is not None
    assert plain.sae is not None
    assert moved.sae is not None
    assert moved.l0 == pytest.approx(plain.l0, rel=0.01)
    biases = [found.sweep.counts[0].directions.bias for found in (plain, moved)]
    torch.testing.assert_close(biases[1], biases[0] + added, rtol=0, atol=0.1)
    # The SAE that is given is for the activations as they are.
    x, _ = samples(small_world(), 4_096)
    used = inference_copy(moved.sae)
    with torch.no_grad():
        codes = used.encode(x + added)
        residual = x + added - used.decode(codes)
    assert float((codes > 0).sum(1).float().mean()) == pytest.approx(moved.sae_l0, rel=0.03)
    assert float(residual.square().sum() / (x - x.mean(0)).square().sum()) < 0.05


def test_noise_is_not_recommended_from() -> None:
    generator = torch.Generator().manual_seed(0)
    source = iter(lambda: torch.randn(256, 12, generator=generator), None)
    found = find_l0(source, 24, SMALL)
    assert (found.l0, found.sae) == (None, None)
    assert found.sweep.counts[0].noise_cost == pytest.approx(1, abs=0.1)
    assert "there is no sign of features" in found.doubts[0]


def test_training_reports_nothing_on_single_saes(monkeypatch: pytest.MonkeyPatch) -> None:
    training, levels = logging.getLogger("sparse_but_wrong.training"), []
    monkeypatch.setattr(find, "_find", lambda *_: levels.append(training.level))
    before = training.level
    find_l0(torch.rand(300, 30), 20, SMALL)
    assert levels == [logging.ERROR]
    assert training.level == before
