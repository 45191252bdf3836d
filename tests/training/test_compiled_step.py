"""The compiled loops where shapes are extreme, and on other processors."""

from __future__ import annotations

import copy
import ctypes
import platform
from pathlib import Path
from typing import Any

import pytest

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
    """Copies of some SAEs, trained by the compiled step and by PyTorch's, and the first's logs."""
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
    return logs[0]


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_far_more_dead_latents_than_dimensions(architecture: str) -> None:
    sae = make(architecture, d_sae=1500, k=2)
    (log,) = by_both([sae], 8, dead_feature_window=2, log_every=1)
    assert log.diverged_at is None
    assert log.columns["dead_latents"][-1] > 1100


@pytest.mark.parametrize(("d_in", "d_sae"), [(2, 1), (3, 17), (17, 16), (33, 70)])
@pytest.mark.parametrize("batch", [1, 65])
def test_shapes_that_fill_no_vector_and_no_tile(d_in: int, d_sae: int, batch: int) -> None:
    shape = {"d_in": d_in, "d_sae": d_sae}
    topk = [make(architecture, k=1, **shape) for architecture in ("batchtopk", "topk")]
    by_both([make("jumprelu", **shape), *topk], 6, batch)


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
    ]
    by_both(saes, 40, dead_feature_window=5)
