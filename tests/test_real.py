"""The page of `make real`, from what the commands before it write."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

L0S = (6, 18, 56)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    file = Path(__file__).resolve().parents[1] / "scripts" / "real_page.py"
    spec = importlib.util.spec_from_file_location("real_page", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def write(folder: Path, kinds: tuple[str, ...]) -> None:
    """An AUC that is best at 18, where seed 1 is a little better than seed 0."""
    names = [f"{kind}_{l0}_seed_{seed}" for kind in kinds for l0 in L0S for seed in (0, 1)]
    l0 = np.array([float(name.split("_")[-3]) for name in names])
    table = pd.DataFrame({"sae": names, "l0": l0})
    for column in ("s_0.25H", "s_0.4H", "c_dec"):
        table[column] = 1 + np.abs(np.log(l0 / 18))
    table[["dead_latents", "dense_latents"]] = 1
    folder.mkdir(parents=True)
    table.to_csv(folder / "saes.csv", index=False)
    auc = 0.9 - 0.01 * np.abs(np.log(l0 / 18))
    for name, columns in (
        ("agreement", {"pw_mcc": 0.5, "shared_latents": 100}),
        ("loss", {"cross_entropy_increase": 10 / l0}),
        ("probing", {"auc_1": auc - 0.1, "auc_16": auc}),
    ):
        pd.DataFrame({"sae": names, **columns}).to_csv(folder / f"{name}.csv", index=False)
    tasks = [
        {"sae": name, "task": f"task {i}", "k": 16, "auc": value + 0.001 * i * (at > 20)}
        for i in range(4)
        for name, value, at in zip(names, auc, l0, strict=True)
    ]
    pd.DataFrame(tasks).to_csv(folder / "probing_details.csv", index=False)


def recommend(folder: Path, l0: float | None) -> None:
    folder.mkdir()
    words = {"text": "An answer\n  - x", "doubts": ["a doubt"], "reasons": ["a reason"]}
    interval = l0 and [l0 / 1.2, l0 * 1.2]
    found: dict[str, Any] = {**words, "l0": l0, "interval": interval}
    (folder / "recommendation.json").write_text(json.dumps(found))


def test_what_the_page_says(
    page: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "layer_7", ("batchtopk", "jumprelu", "random_decoder"))
    write(tmp_path / "layer_14", ("batchtopk", "jumprelu"))
    for layer, l0s in ((7, (18.0, 20.0)), (14, (55.0, None))):
        for name, l0 in zip(("batchtopk", "jumprelu"), l0s, strict=True):
            recommend(tmp_path / f"l0_layer_{layer}_{name}", l0)
    page.main(tmp_path)

    said = capsys.readouterr().out
    assert "Layer 7: BatchTopK 18, JumpReLU 20, within 15%." in said
    assert "Layer 14: BatchTopK 55, JumpReLU declined" in said
    of_layer_7, of_layer_14 = said.split("layer 14, BatchTopK")
    assert "best at an L0 of 18" in of_layer_7
    assert "smallest, at 18, the AUC is lower than the best by 0.0000 ± 0.0000" in of_layer_7
    assert "recommended one, at 18" in of_layer_7
    assert "does not" not in of_layer_7
    assert "A random decoder reaches 0.900" in of_layer_7
    # 0.01 · ln(56/18), less what tasks add at 56: 0.0015 on average, ± 0.0006.
    assert "recommended one, at 56, the AUC is lower than the best by 0.0098 ± 0.0006" in said
    assert "does not bear it out" in of_layer_14
    assert len(pd.read_csv(tmp_path / "signals.csv")) == 5 * 6
    assert (tmp_path / "report.html").stat().st_size > 10_000
