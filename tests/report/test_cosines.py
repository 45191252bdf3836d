from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_but_wrong.report.cosines import MOST_SIDE, cosine_frames
from sparse_but_wrong.report.embed import QUANTUM
from sparse_but_wrong.tensors import cos_sims
from sparse_but_wrong.worlds.world import ToyWorld
from tests.report.folders import Sweep, write_run


def saes_of(sweep: Sweep) -> list[dict[str, Any]]:
    return [{"id": sweep.sae_id(i), "world": sweep.world_of(i)} for i in range(len(sweep.l0s))]


def matrix(frame: dict[str, Any]) -> np.ndarray:
    steps = np.frombuffer(base64.b64decode(frame["values"]), dtype=np.int8)
    return steps.reshape(len(frame["latents"]), len(frame["features"])) * QUANTUM


def test_latents_are_in_the_order_of_their_features(tmp_path: Path) -> None:
    sweep = Sweep(n_features=6, d_in=8, d_sae=9, l0s=(1.32,))
    folder = write_run(tmp_path / "run", sweep)
    data = cosine_frames(folder, saes_of(sweep))
    assert data is not None
    (frame,) = data["frames"]
    assert frame["features"] == list(range(6))
    assert sorted(frame["latents"]) == list(range(9))
    assert (data["left_out"], data["thinned"]) == (0, False)
    np.testing.assert_allclose(np.diag(matrix(frame)), 1, atol=QUANTUM)
    directions = ToyWorld.load(folder.world_path("world")).directions
    decoder = folder.load_sae(sweep.sae_id(0)).W_dec.detach()[frame["latents"]]
    expected = cos_sims(decoder.T, directions).numpy()
    np.testing.assert_allclose(matrix(frame), expected, atol=QUANTUM / 2 + 1e-6)


def test_of_a_wide_sae_some_latents_are_shown_with_their_partners(tmp_path: Path) -> None:
    sweep = Sweep(n_features=150, d_in=160, d_sae=160, l0s=(33.0,))
    data = cosine_frames(write_run(tmp_path / "run", sweep), saes_of(sweep))
    assert data is not None
    (frame,) = data["frames"]
    assert data["thinned"] is True
    assert len(frame["latents"]) == len(frame["features"]) == MOST_SIDE
    assert (frame["features"][0], frame["features"][-1]) == (0, 149)
    assert np.diag(matrix(frame)).min() > 0.9


def test_of_a_long_sweep_of_wide_saes_some_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparse_but_wrong.report.cosines._MOST_CELLS", 3 * 6 * 64)
    sweep = Sweep(l0s=(1.0, 1.5, 2.0, 2.5, 3.0))
    data = cosine_frames(write_run(tmp_path / "run", sweep), saes_of(sweep))
    assert data is not None
    assert [frame["sae"] for frame in data["frames"]] == [0, 2, 4]
    assert data["left_out"] == 2


def test_a_latent_that_broke_is_not_a_number(tmp_path: Path) -> None:
    sweep = Sweep(l0s=(1.32,))
    folder = write_run(tmp_path / "run", sweep)
    sae = folder.load_sae(sweep.sae_id(0))
    with torch.no_grad():
        sae.W_dec[2] = torch.nan
    shutil.rmtree(folder.sae_path(sweep.sae_id(0)))
    folder.save_sae(sweep.sae_id(0), sae)
    data = cosine_frames(folder, saes_of(sweep))
    assert data is not None
    (frame,) = data["frames"]
    row = frame["latents"].index(2)
    assert (matrix(frame)[row] == -128 * QUANTUM).all()


def test_without_worlds_or_saes_there_is_nothing_to_show(tmp_path: Path) -> None:
    sweep = Sweep(l0s=(1.0,))
    folder = write_run(tmp_path / "run", sweep)
    assert cosine_frames(folder, [{"id": "another", "world": "world"}]) is None
    assert cosine_frames(folder, [{"id": sweep.sae_id(0), "world": "nowhere"}]) is None
