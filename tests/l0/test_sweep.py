"""From the decoders of a sweep to counts."""

from __future__ import annotations

import pytest
import sae_lens
import torch

from sparse_but_wrong.l0 import sweep
from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.l0.presence import Presence
from sparse_but_wrong.l0.sweep import count_from
from sparse_but_wrong.training.make import make_saes
from tests.l0.evidence import presence

X = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("scores", "l0s", "n_tried"),
    [
        # Where one is hopeless, or two are poor, none of the others is tried.
        ([0.35, 0.0, 0.0, 0.0], [10.0, 10.0, 10.0, 10.0], 1),
        ([0.2, 0.15, 0.0, 0.0], [10.0, 12.0, 10.0, 10.0], 2),
        ([0.2, 0.01, 0.05, 0.3], [10.0, 12.0, 14.0, 16.0], 4),
        # Two of different groups that agree are enough, if they are clear.
        ([0.01, 0.01, 0.0, 0.0], [10.0, 10.04, 10.0, 10.0], 2),
        ([0.01, 0.01, 0.01, 0.0], [10.0, 10.06, 10.03, 10.0], 3),
        ([0.05, 0.05, 0.01, 0.0], [10.0, 10.0, 10.03, 10.0], 4),
    ],
)
def test_how_many_starts_are_tried(
    scores: list[float], l0s: list[float], n_tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Presence] = []

    def refined(start: Directions, *_: object, **__: object) -> tuple[Directions, Presence]:
        score, l0 = scores[len(tried)], l0s[len(tried)]
        tried.append(presence(l0, above_cut=l0 * (1 - score), residual=0.0))
        return start, tried[-1]

    monkeypatch.setattr(sweep, "refine_directions", refined)
    monkeypatch.setattr(sweep, "cost_on_noise", lambda *_: 1.0)
    cfgs = [sae_lens.TopKTrainingSAEConfig(d_in=8, d_sae=12, k=2)] * 4
    groups = ["seed_0", "seed_1"] * 2
    counts = count_from(make_saes(cfgs, seeds=[0, 1, 2, 3]), list("abcd"), groups, [X], X, seed=0)
    assert len(tried) == len(counts) == n_tried
    assert [count.presence.score for count in counts] == pytest.approx(sorted(scores[:n_tried]))
