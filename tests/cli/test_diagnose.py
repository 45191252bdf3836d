"""`sbw diagnose` on files, as a user has them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from sparse_but_wrong.cli.main import cli

D, H = 6, 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of activations, a BatchTopK SAE as it is trained, and one for inference."""
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        JumpReLUSAE,
        JumpReLUSAEConfig,
    )

    folder = tmp_path_factory.mktemp("diagnose")
    rng = np.random.default_rng(0)
    np.save(folder / "acts.npy", rng.normal(size=(500, D)).astype(np.float32))
    torch.manual_seed(0)
    training = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D, d_sae=H, k=3))
    training.topk_threshold.fill_(0.5)
    training.save_model(folder / "batchtopk")
    JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=H)).save_model(folder / "jumprelu")
    JumpReLUSAE(JumpReLUSAEConfig(d_in=D + 1, d_sae=H)).save_model(folder / "other")
    return folder


def run(place: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        cli, ["diagnose", *arguments, "--activations", str(place / "acts.npy")]
    )


def test_prints_a_table_and_writes_a_report(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(
        place,
        *(str(place / "batchtopk"), str(place / "jumprelu")),
        *("--batch-size", "50", "--out", str(out)),
    )
    assert done.exit_code == 0, done.output
    assert "2 SAEs on 500 of 500 samples" in done.output
    table = pd.read_csv(out / "saes.csv").set_index("sae")
    assert table["n_batches"].tolist() == [10, 10]
    # The BatchTopK SAE by its threshold, not by the k it picks per batch.
    from sparse_but_wrong.saes.load import load_sae

    sae = load_sae(place / "batchtopk")
    x = torch.from_numpy(np.load(place / "acts.npy"))
    with torch.no_grad():
        l0 = (sae.encode(x) != 0).sum(1).double().mean().item()
    assert table.loc["batchtopk", "l0"] == pytest.approx(l0)
    assert abs(l0 - 3) > 0.05
    assert "Report: " in done.output
    assert (out / "report.html").is_file()


def test_there_are_enough_batches_for_standard_errors(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(place, str(place / "jumprelu"), "--out", str(out))
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out / "saes.csv")
    # 500 samples: batches of 31, and one of what is left.
    assert table["n_batches"].tolist() == [17]
    assert table["n_samples"].tolist() == [500]
    assert 0 < table["mse_standard_error"].tolist()[0] < table["mse"].tolist()[0]


def test_fewer_samples_are_whole_batches(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(
        place, str(place / "jumprelu"), "--samples", "210", "--batch-size", "100", "--out", str(out)
    )
    assert done.exit_code == 0, done.output
    assert pd.read_csv(out / "saes.csv")["n_samples"].tolist() == [200]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["other"], r"other reads activations of width 7, but those of .*acts.npy have 6"),
        (["missing"], "there is no folder or file"),
        (["jumprelu", "--batch-size", "100", "--samples", "50"], "less than a batch"),
    ],
)
def test_what_does_not_fit_is_refused(
    place: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "out"
    done = run(place, str(place / arguments[0]), *arguments[1:], "--out", str(out))
    assert isinstance(done.exception, ValueError | OSError)
    assert re.search(message, str(done.exception))
    assert not out.exists()


def test_two_folders_of_one_name_are_told_apart(place: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(place / "jumprelu", tmp_path / "jumprelu")
    out = tmp_path / "out"
    done = run(place, str(place / "jumprelu"), str(tmp_path / "jumprelu"), "--out", str(out))
    assert done.exit_code == 0, done.output
    assert len(set(pd.read_csv(out / "saes.csv")["sae"])) == 2
