"""From a stream to an L0, end to end, on a small world at a small budget."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens import SAE, BatchTopKTrainingSAEConfig, JumpReLUTrainingSAE, TrainingSAE

from sparse_but_wrong.l0 import find
from sparse_but_wrong.l0.agreement import Agreement
from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.l0.find import FindOptions, find_l0
from sparse_but_wrong.l0.options import training_config
from sparse_but_wrong.l0.recommend import L0Recommendation, recommend_l0
from sparse_but_wrong.l0.sweep import Count, evaluate_sweep
from sparse_but_wrong.sae_lens_compat import inference_copy
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.make import make_saes
from sparse_but_wrong.training.options import TrainOptions
from tests.l0.evidence import presence, sweep
from tests.l0.worlds import known, samples, small_world, stream, unit

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
    if d_sae < 20:
        # Agreement decides, and at this budget a pair of SAEs shares more or less by chance.
        options = replace(options, fine_factors=(0.7, 0.85, 1.0, 1.2, 1.4))
    return find_l0(stream(small_world(l0=l0), seed=seed, batch_size=256), d_sae, options)


@functools.cache
def truth(l0: float = 4.0) -> float:
    return samples(small_world(l0=l0), 100_000)[1]


def codes_of(sae: SAE[Any] | TrainingSAE[Any] | None, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Codes and reconstructions, as the SAE is used."""
    assert sae is not None
    used = inference_copy(sae)
    with torch.no_grad():
        codes = used.encode(x)
        return codes, used.decode(codes)


def test_the_truth_lies_in_the_interval_and_the_sae_has_the_true_features() -> None:
    found, true = search(), known(4_096)
    assert found.l0 == pytest.approx(truth(), rel=0.02)
    assert found.interval is not None
    assert found.interval[0] < truth() < found.interval[1]
    assert found.doubts == ()
    assert found.sweep.counts[0].presence.n_directions == 20
    assert found.sae is not None
    assert found.sae_l0 is not None
    assert found.interval[0] <= found.sae_l0 <= found.interval[1]
    codes, _ = codes_of(found.sae, true.x)
    assert (codes > 0).sum(1).float().mean().item() == pytest.approx(found.sae_l0, rel=0.05)
    cosines = unit(found.sae.W_dec.detach()) @ true.true.rows.T
    assert int((cosines.max(0).values > 0.99).sum()) >= 19
    # The sweep is there as evidence: four coarse and three fine L0s of two seeds each, and three
    # that start from directions.
    table, projections = found.sweep.table, found.sweep.projections
    assert len(table) == 4 * 2 + 3 * 2 + 3
    assert found.sae_l0 in set(table["l0"])
    assert set(table["group"]) == {"seed_0", "seed_1", "directions"}
    assert table["sae_id"].is_unique
    assert bool(table["l0"].between(0, 20).all())
    assert projections.shape == (len(table), 20)
    assert {"c_dec", "s_0"} <= set(found.sweep.wide().columns)
    assert found.sweep.wide()["s_19"].tolist() == projections[19].tolist()


def test_two_seeds_agree_within_their_intervals() -> None:
    found, other = search(), search(seed=1)
    assert other.interval is not None
    assert found.l0 is not None
    assert other.interval[0] <= found.l0 <= other.interval[1]
    assert other.l0 != found.l0


def test_jumprelu() -> None:
    found = search("jumprelu")
    assert found.l0 == pytest.approx(truth(), rel=0.02)
    # SAEs start near their target, so that some get below the true L0, and the curves show it.
    assert found.sweep.table["l0"].to_numpy(float).min() < 0.8 * truth()
    assert "s_n^dec rises" in found.reasons[-1]
    # The SAE is the one with the recommended L0 as its target, and has it where it is measured.
    assert isinstance(found.sae, JumpReLUTrainingSAE)
    by_id = found.sweep.table.set_index("sae_id")["l0"]
    assert found.sae_l0 == by_id[f"directions_{found.l0:.2f}"]
    codes, _ = codes_of(found.sae, known().x)
    assert (codes > 0).sum(1).float().mean().item() == pytest.approx(found.sae_l0, rel=0.05)


@pytest.mark.parametrize(
    ("target", "spread", "own"),
    [(6.0, 1.0, {}), (30.0, 1.0, {}), (30.0, 3.0, {}), (30.0, 1.0, {"decoder_init_norm": 0.2})],
)
def test_jumprelu_saes_start_near_their_l0(
    target: float, spread: float, own: dict[str, Any]
) -> None:
    x = torch.randn(2_048, 64, generator=torch.Generator().manual_seed(0)) * torch.arange(64)
    x *= spread * 8 / x.norm(dim=1, keepdim=True)
    sae = make_saes([training_config("jumprelu", target, 64, 256, spread, **own)], [0])[0]
    with torch.no_grad():
        l0 = (sae.encode(x) > 0).sum(1).float().mean().item()
    assert l0 == pytest.approx(target, rel=0.15)


def test_matryoshka_saes_have_widths_without_being_told() -> None:
    found = search("matryoshka_batchtopk")
    assert found.counted == pytest.approx(search().counted, rel=0.02)
    assert found.sae is not None
    assert found.sae.cfg.matryoshka_widths == [5, 10, 20]


def test_too_narrow_saes_get_an_l0_of_their_own() -> None:
    found = search(d_sae=16)
    assert found.basis == "agreement"
    assert "too narrow" in found.reasons[1]
    assert "d_sae ≥ 20" in found.reasons[1]
    # Of the 20 features so many are active, of 16 of them less.
    assert found.active.l0 == pytest.approx(truth(), rel=0.03)
    assert found.l0 is not None
    # On noise of the same covariance SAEs were trained for the L0 that was found.
    assert found.sweep.on_noise is not None
    assert found.sweep.on_noise["l0"].tolist() == pytest.approx([found.l0] * 2, rel=0.2)
    assert found.agreement is not None
    assert found.agreement.on_noise < found.agreement.n_shared / 2
    assert 0.6 * truth() < found.l0 < truth()
    assert found.interval is not None
    assert found.sae_l0 is None or found.interval[0] <= found.sae_l0 <= found.interval[1]


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


@pytest.mark.parametrize("batch_size", [64, 256])
def test_steps_are_batches_of_the_source(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "count_from", lambda *_, **__: ())  # which ends after one sweep
    numbers, source = itertools.count(), stream(small_world(), batch_size=batch_size)
    changes = {"n_seeds": 1, "coarse_steps": 40, "learning_batches": 3, "evaluation_samples": 1_024}
    options = replace(SMALL, **changes)
    find_l0((next(source) for _ in numbers), 20, options)
    # Those to measure on, those that the norm is estimated on, the steps, and those to learn from.
    assert next(numbers) == 1_024 // batch_size + 40 + 40 + 3


def small_search(held_out: torch.Tensor, **options: Any) -> find._Search:
    source = stream(small_world(), batch_size=256)
    return find._Search(source, held_out, 256, 20, replace(SMALL, **options))


def test_l0s_that_are_out_of_reach_are_not_trained_twice() -> None:
    true, held_out, _ = known(256)
    options = {"n_seeds": 1, "fine_steps": 2, "fine_factors": (0.5, 1.0, 1.2, 1.4)}
    count = Count("by_hand", "seed_0", true, presence(17.0), 5.0)
    fine, started = small_search(held_out, **options).around(count)
    # 1.2 and 1.4 times 17 are cut to the same.
    assert fine.ids == ["fine_8.50_seed_0", "fine_17.00_seed_0", "fine_19.60_seed_0"]
    assert len(started.saes) == 3


@pytest.mark.parametrize(
    ("at_end", "most_shared_at", "centres"),
    [
        ("", 5.0, [7.0]),
        ("lower", 5.0, [4.0, 4.0]),
        ("higher", 5.0, [13.0, 13.0]),
        # A coarse sweep in which dead latents are alike.
        ("", 30.0, [30.0]),
        ("lower", 30.0, [30.0, 4.0]),
    ],
)
def test_sweeps_are_where_latents_are_shared_and_go_on_beyond_the_end_where_saes_are_most_alike(
    at_end: str, most_shared_at: float, centres: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    around: list[float] = []

    class Search:
        options = SMALL

        def fine(self, _: str, targets: list[float]) -> None:
            around.append(targets[1])

        def __getattr__(self, _: str) -> Any:
            return lambda *_: SimpleNamespace(counts=())

    peak = Agreement(7.0, (4.0, 13.0), 0.8, 50.0, 0.5, math.nan, at_end, most_shared_at)
    found: Any = SimpleNamespace(agreement=peak, sweep=SimpleNamespace(counts=()), l0=None)
    monkeypatch.setattr(find, "recommend_l0", lambda _: found)
    monkeypatch.setattr(find, "replace", lambda sweep, **_: sweep)
    searching: Any = Search()
    assert find._around_agreement(searching, searching, found) is found
    assert around == centres


@pytest.mark.parametrize("normalisation", ["none", "expected_average_only_in"])
def test_saes_without_a_scale_start_in_the_units_of_the_activations(normalisation: str) -> None:
    true, x, _ = known(256)
    held_out, bias = x + 3.0, torch.full((30,), 3.0)
    search_ = small_search(held_out, sae_config={"normalize_activations": normalisation})
    (sae,) = search_._make([4.0], [0])
    assert sae.cfg.normalize_activations == normalisation
    find._start_at(sae, replace(true, bias=bias), search_._scale())
    scale = 1.0 if normalisation == "none" else 30**0.5 / held_out.norm(dim=1).mean().item()
    torch.testing.assert_close(sae.b_dec.detach(), bias * scale)


def test_saes_trained_elsewhere() -> None:
    ks = (2.5, 4.0, 5.5)
    cfgs = [BatchTopKTrainingSAEConfig(d_in=30, d_sae=20, k=k) for k in ks]
    saes = make_saes(cfgs, seeds=range(3))
    options = TrainOptions(
        total_training_samples=400 * 256,
        train_batch_size_samples=256,
        lr=3e-3,
        reinit_dead_every=50,
        progress=False,
    )
    train_saes(saes, stream(small_world(), batch_size=256), options)
    before = [sae.W_dec.detach().clone() for sae in saes]
    source = stream(small_world(), seed=5)
    sweep = evaluate_sweep(saes, source, evaluation_samples=8_192, learning_batches=100)
    found = recommend_l0(sweep)
    assert found.l0 == pytest.approx(truth(), rel=0.02)
    assert found.sae is None
    assert list(sweep.table["l0"]) == pytest.approx(ks, rel=0.1)
    assert all(torch.equal(sae.W_dec, old) for sae, old in zip(saes, before, strict=True))


@pytest.mark.parametrize(
    ("source", "d_sae", "error", "message"),
    [
        ([torch.rand(3, 30)], 1, ValueError, "d_sae must be at least 2, got 1"),
        (torch.rand(300, 30), None, ValueError, "d_sae"),
        (itertools.repeat(torch.ones(256, 6)), 20, ValueError, "8192 samples .* all the same"),
        (itertools.repeat((torch.rand(3, 30),)), 20, TypeError, "is a tuple"),
        ([torch.rand(256, 30)] * 3, 20, ValueError, "ran out"),
        ([torch.full((9_000, 30), torch.nan)], 20, ValueError, "not finite"),
    ],
)
def test_activations_that_nothing_is_found_on(
    source: Any, d_sae: int | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        find_l0(source, d_sae, SMALL)


@pytest.mark.parametrize(
    ("widths", "ids", "message"),
    [
        ([], None, "no SAEs"),
        ([8, 9], None, r"\(8, 30\), \(9, 30\)"),
        ([8], ["a", "b"], "1 SAEs but 2 ids"),
    ],
)
def test_saes_that_are_no_sweep(widths: list[int], ids: list[str] | None, message: str) -> None:
    cfgs = [BatchTopKTrainingSAEConfig(d_in=30, d_sae=d, k=2) for d in widths]
    with pytest.raises(ValueError, match=message):
        evaluate_sweep([make_saes([cfg], seeds=[0])[0] for cfg in cfgs], stream(small_world()), ids)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(
            ({"sae_config": {name: 3}}, f"sae_config: '{name}' is set by the search")
            for name in ("d_sae", "d_in", "device", "k", "l0_coefficient", "l1_warm_up_steps")
        ),
        *(
            ({name: 0}, rf"FindOptions\.{name} must be at least 1, got 0")
            for name in ("n_coarse", "threads", "reinit_dead_every")
        ),
        ({"sae_config": {"foo": 1}}, "sae_config: .*'foo'; they have .*decoder_init_norm"),
        ({"sae_config": {"jumprelu_bandwidth": 1.0}}, "batchtopk SAEs have no field"),
        ({"sae_config": {"normalize_activations": "layer_norm"}}, "sae_config: .*layer_norm"),
        ({"fine_factors": (0.5, 2.0)}, r"1\.0 among them"),
        ({"architecture": "temporal"}, "'temporal' SAEs cannot be set; use one of batchtopk"),
    ],
)
def test_options_that_are_refused(given: dict[str, Any], message: str) -> None:
    FindOptions(architecture="jumprelu", sae_config={"jumprelu_bandwidth": 1.0})
    FindOptions(sae_config={"normalize_activations": "none", "decoder_init_norm": 0.2}, threads=2)
    with pytest.raises(ValueError, match=message):
        FindOptions(**given)


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
    added = 10 * unit(torch.linspace(-1, 2, 30)[None])[0]
    options = replace(SMALL, architecture=architecture, sae_config=config)
    sources = [stream(small_world(), batch_size=256) for _ in range(2)]
    plain = search() if architecture == "batchtopk" else find_l0(sources[0], 20, options)
    moved = find_l0((batch + added for batch in sources[1]), 20, options)
    assert plain.l0 is not None
    assert plain.sae is not None
    assert moved.l0 == pytest.approx(plain.l0, rel=0.01)
    biases = [found.sweep.counts[0].directions.bias for found in (plain, moved)]
    torch.testing.assert_close(biases[1], biases[0] + added, rtol=0, atol=0.1)
    # The SAE that is given is for the activations as they are.
    x = known(4_096).x
    codes, reconstructed = codes_of(moved.sae, x + added)
    assert float((codes > 0).sum(1).float().mean()) == pytest.approx(moved.sae_l0, rel=0.03)
    residual = x + added - reconstructed
    assert float(residual.square().sum() / (x - x.mean(0)).square().sum()) < 0.05


def test_noise_is_not_recommended_from() -> None:
    generator = torch.Generator().manual_seed(0)
    source = iter(lambda: torch.randn(256, 12, generator=generator), None)
    found = find_l0(source, 24, replace(SMALL, evaluation_samples=2_048, learning_batches=20))
    assert (found.l0, found.sae) == (None, None)
    assert found.sweep.counts[0].noise_cost == pytest.approx(1, abs=0.1)
    assert "no sign of features" in found.doubts[0]


def test_a_search_has_its_threads_and_training_reports_nothing_on_single_saes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = logging.getLogger("sparse_but_wrong.training")
    seen: list[tuple[int, int]] = []

    def settings(*_: object) -> tuple[int, int]:
        return torch.get_num_threads(), training.level

    def answer(*_: object) -> L0Recommendation:
        seen.append(settings())
        return recommend_l0(sweep())

    monkeypatch.setattr(find, "_find", answer)
    before = settings()
    find_l0(torch.rand(300, 30), 20, replace(SMALL, threads=before[0] + 1))
    assert seen == [(before[0] + 1, logging.ERROR)]
    assert settings() == before
