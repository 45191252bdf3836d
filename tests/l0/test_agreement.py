"""How alike SAEs are, by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import sae_lens
import torch

from sparse_but_wrong.l0 import agreement
from sparse_but_wrong.l0.agreement import (
    agreement_evidence,
    partners,
    pw_mcc,
    read_agreement,
    shared_latents,
)
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.training.make import make_sae
from tests.l0.worlds import random_rows


def test_shared_latents() -> None:
    rows = random_rows(40, 64)
    # In another order, at any length, and a little off.
    moved = rows.flip(0) * 3 + 0.2 * random_rows(40, 64, seed=1)
    cosines = torch.nn.functional.cosine_similarity(rows.flip(0), moved)
    assert 0.9 < cosines.min() < cosines.max() < 0.9999
    assert shared_latents(rows, moved) == pytest.approx(float((cosines**4).sum()), rel=1e-6)
    assert shared_latents(rows, random_rows(40, 64, seed=2)) == 0
    assert shared_latents(rows, -rows) == 0
    # Two copies of one are one, and rows that diverged are none.
    assert shared_latents(rows, torch.cat([rows[:10], rows[:10]])) == pytest.approx(10)
    moved[:5] = math.nan
    assert shared_latents(rows, moved) == pytest.approx(float((cosines[5:] ** 4).sum()), rel=1e-6)
    assert shared_latents(rows, rows[:0]) == shared_latents(rows[:0], rows) == 0


@pytest.mark.parametrize("cosine", [0.69, 0.71])
def test_how_near_a_shared_latent_is(cosine: float) -> None:
    a = torch.tensor([[1.0, 0.0]])
    b = torch.tensor([[cosine, math.sqrt(1 - cosine**2)]])
    assert shared_latents(a, b) == pytest.approx(cosine**4 if cosine > 0.7 else 0, rel=1e-6)


def test_partners() -> None:
    l0s = [4.0, 4.1, 8.0, 9.0, 30.0, math.nan, 0.0]
    groups = ["a", "b", "a", "b", "a", "b", "b"]
    # The nearest of another group, if it is within a factor of 1.3.
    assert partners(l0s, groups) == [1, 0, 3, 2, None, None, None]
    assert partners([4.0, 4.0], ["a", "a"]) == [None, None]


def test_the_answer_is_the_middle_of_where_saes_are_nearly_as_alike() -> None:
    # Of a coarse sweep: 4 % less than the highest, 0.758, where lines from 0.73 to 0.79 and from
    # there to 0.5 cross it.
    l0s = [1.5, 2.95, 5.8, 11.45, 22.3, 44.4, 87.7, 172.7]
    alike = [0.64, 0.66, 0.73, 0.79, 0.5, 0.2, 0.2, 0.2]
    # What is shared does not say where.
    shared = [193, 298, 219, 237, 151, 0, 0, 0]
    table = pd.DataFrame({"l0": l0s, "pw_mcc": alike, "shared_latents": shared})
    found = read_agreement(table.assign(dead_latents=12), 384)
    assert found is not None
    low = 5.8 * (11.45 / 5.8) ** ((0.96 * 0.79 - 0.73) / (0.79 - 0.73))
    high = 11.45 * (22.3 / 11.45) ** (0.04 * 0.79 / (0.79 - 0.5))
    assert found.interval == pytest.approx((low, high), rel=0.01)
    assert found.l0 == pytest.approx(math.sqrt(low * high), rel=0.01)
    assert found.pw_mcc == pytest.approx(0.79, rel=0.01)
    assert found.n_shared == pytest.approx(237, rel=0.01)
    assert found.share == pytest.approx(237 / 372, rel=0.01)
    assert (found.at_end, found.most_shared_at) == ("", pytest.approx(2.95, rel=0.01))


@pytest.mark.parametrize("step", [1.25, 1.05])
def test_pairs_are_averaged_over_the_same_range_however_dense_the_sweep_is(step: float) -> None:
    # As alike everywhere from 6 to 15, give or take a tenth from one pair to the next.
    l0s = 3 * step ** np.arange(1 + math.log(10, step))
    alike = np.where((l0s > 6) & (l0s < 15), 0.7, 0.3) * (1 + 0.1 * (-1) ** np.arange(len(l0s)))
    table = pd.DataFrame({"l0": l0s, "pw_mcc": alike, "shared_latents": 250 * alike})
    found = read_agreement(table.assign(dead_latents=0), 384)
    assert found is not None
    assert found.l0 == pytest.approx(math.sqrt(6 * 15), rel=0.1)
    assert found.n_shared == pytest.approx(250 * 0.7, rel=0.03)


def test_pw_mcc_is_that_of_sae_lens_and_its_error_is_over_rows() -> None:
    from sae_lens.synthetic import mean_correlation_coefficient

    a, b = random_rows(30, 20), random_rows(30, 20, seed=1)
    assert pw_mcc(a, b).value == pytest.approx(mean_correlation_coefficient(a, b), abs=1e-6)
    # By hand: rows matched with cosines of 1 and 0.8, in another order and one the other way.
    a, b = torch.eye(2), torch.tensor([[0.6, 0.8], [-3.0, 0.0]])
    assert pw_mcc(a, b) == pytest.approx((0.9, 0.1 / math.sqrt(2)), abs=1e-6)
    # A row that diverged is like none.
    b[0] = math.nan
    assert pw_mcc(a, b).value == pytest.approx(0.5)


def test_too_many_rows_to_match_go_with_their_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_MATCHED_UP_TO", 1)
    # Both of one are nearest to the same, with cosines of 0.6 and 0.8; the other two to theirs.
    a, b = torch.eye(2), torch.tensor([[0.6, 0.8], [0.0, 0.1]])
    assert pw_mcc(a, b).value == pytest.approx((0.6 + 1 + 0.8 + 1) / 4)


def test_agreement_within_a_kind() -> None:
    saes = {
        name: make_sae(sae_lens.TopKTrainingSAEConfig(d_in=16, d_sae=24, k=3), seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1), ("alone", 2))
    }
    samples = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
    evaluations = evaluate(saes, samples)
    kinds = {"a": "run", "b": "run", "c": "another", "alone": "third"}
    found = agreement_evidence(saes, evaluations, kinds)

    # Two of the same weights, and two that have nobody of their kind.
    alive = 24 - evaluations["a"].dead_latents
    assert found.table.loc["a", "pw_mcc"] == pytest.approx(1, abs=1e-6)
    assert found.table.loc["b", "shared_latents"] == pytest.approx(alive, rel=1e-6)
    assert found.table.loc["a", "shared_latents_standard_error"] == pytest.approx(0, abs=0.01)
    assert found.table.loc[["c", "alone"]].isna().all().all()
    (level,) = found.baselines["pw_mcc"].values()
    assert 0.4 < level.value < 0.6
