"""The compiled loops where shapes are extreme, and on other processors."""

from __future__ import annotations

import copy
import ctypes
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_but_wrong.training import compiled_step
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.native import build
from tests.training import oracle
from tests.training.oracle import assert_close, make, unlike_saes


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    if compiled_step.kernels() is None:
        pytest.skip("this machine has no C++ compiler, so there is nothing compiled")


def by_both(saes: list[Any], n_steps: int, batch: int = oracle.BATCH, **changes: Any) -> list[Any]:
    """The compiled step's logs of copies of some SAEs, which end where PyTorch's step ends."""
    batches = oracle.recorded_batches(n_steps, batch=batch, d_in=saes[0].cfg.d_in)
    ends, logs = [], []
    for compiled in (True, False):
        copies = copy.deepcopy(saes)
        options = oracle.options_for(
            n_steps, total_training_samples=n_steps * batch, compiled=compiled, **changes
        )
        logs.append(train_saes(copies, iter(batches), options).saes)
        ends.append(copies)
    for mine, wanted in zip(*ends, strict=True):
        assert_close(mine, wanted)
    for mine, wanted in zip(*logs, strict=True):
        assert list(mine.columns) == list(wanted.columns)
        for name, values in mine.columns.items():
            assert values == pytest.approx(wanted.columns[name], rel=1e-3, abs=1e-5), name
    return logs[0]


MATRYOSHKA = "matryoshka_batchtopk"
BY_LEVEL = {"use_matryoshka_aux_loss": True}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("topk", {}),
        ("batchtopk", {}),
        (MATRYOSHKA, {"matryoshka_widths": [100, 500, 1500]}),
        (MATRYOSHKA, {"matryoshka_widths": [3, 500, 1500], **BY_LEVEL}),
    ],
    ids=str,
)
def test_far_more_dead_latents_than_dimensions(architecture: str, options: dict[str, Any]) -> None:
    sae = make(architecture, d_sae=1500, k=2, **options)
    (log,) = by_both([sae], 8, dead_feature_window=2, log_every=1)
    assert log.diverged_at is None
    assert log.columns["dead_latents"][-1] > 1100


@pytest.mark.parametrize(("d_in", "d_sae"), [(2, 1), (3, 17), (17, 16), (33, 70)])
@pytest.mark.parametrize("batch", [1, 65])
def test_shapes_that_fill_no_vector_and_no_tile(d_in: int, d_sae: int, batch: int) -> None:
    shape = {"d_in": d_in, "d_sae": d_sae}
    topk = [make(architecture, k=1, **shape) for architecture in ("batchtopk", "topk")]
    by_both([make("jumprelu", **shape), *topk], 6, batch)


@pytest.mark.parametrize("by_level", [False, True])
@pytest.mark.parametrize("k", [2, 30, 60])  # few are active, many, nearly all
@pytest.mark.parametrize("widths", [[1, 2, 70], [5, 20, 33, 70], [16, 64, 70], [*range(1, 71)]])
def test_levels_that_end_anywhere_in_a_vector(widths: list[int], k: int, by_level: bool) -> None:
    shape = {"d_in": 33, "d_sae": 70, "matryoshka_widths": widths}
    saes = unlike_saes(MATRYOSHKA, k=k, use_matryoshka_aux_loss=by_level, **shape)
    with torch.no_grad():
        for sae in saes:  # nearly everything is positive, but for some latents that are dead
            sae.b_enc += 5.0
            sae.b_enc[[0, 18, 19, 66]] = -20.0
    logs = by_both(saes, 12, 65, dead_feature_window=3, log_every=1)
    for sae, log in zip(saes, logs, strict=True):
        assert log.columns["dead_latents"][-1] >= 4
        assert log.columns["l0"][-1] == pytest.approx(sae.cfg.k, abs=0.02)


# Other processors run other branches of the source: half as wide, or a quarter.
@pytest.mark.parametrize(
    "flags", [("-march=native", "-mno-avx512f"), ("-march=x86-64",)], ids=" ".join
)
def test_loops_for_older_processors_end_where_the_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("these flags are for x86-64 processors")
    source = build.source_of(compiled_step.DECLARATIONS)
    build.build(source, build.find_compiler(), flags, tmp_path / "kernels.so")
    older = compiled_step.typed(ctypes.CDLL(str(tmp_path / "kernels.so")))
    assert older.vector_floats() in (4, 8)
    monkeypatch.setattr(compiled_step, "kernels", lambda: older)
    step = {"jumprelu_sparsity_loss_mode": "step", "jumprelu_ste_to_input": True}
    quadratic = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 2.5}
    saes = [
        *unlike_saes("jumprelu"),
        *unlike_saes("jumprelu", **step),
        *unlike_saes("jumprelu", **quadratic, pre_act_loss_coefficient=0.05),
        *unlike_saes("topk"),
        *unlike_saes("batchtopk"),
        *unlike_saes("batchtopk", d_sae=40),
        *unlike_saes(MATRYOSHKA),
        *unlike_saes(MATRYOSHKA, d_sae=40, matryoshka_widths=[5, 19, 40], **BY_LEVEL),
    ]
    by_both(saes, 40, dead_feature_window=5)
