"""Where SAEs are looked for, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from sparse_but_wrong.saes.load import load_sae


def save(folder: Path) -> Path:
    StandardSAE(StandardSAEConfig(d_in=6, d_sae=10)).save_model(folder)
    return folder


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    for where in (tmp_path / "no", str(tmp_path / "no"), "nothing-here", "./a/b/c", "~/no/such"):
        with pytest.raises(FileNotFoundError, match="there is no folder or file"):
            load_sae(where)


def test_a_path_object_is_never_looked_up_on_the_hub() -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder or file 'user/repo/folder'"):
        load_sae(Path("user/repo/folder"))


def test_a_mistyped_path_below_a_folder_is_not_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "results/saes/k_2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder or file 'results/saes/k_3'"):
        load_sae("results/saes/k_3")
    assert load_sae("results/saes/k_2").cfg.d_sae == 10


def test_a_folder_without_an_sae_says_what_was_looked_for(tmp_path: Path) -> None:
    looked_for = (
        r"no SAE in .*: looked for cfg.json and sae_weights.safetensors \(sae_lens\); config.json "
        r"and ae.pt \(dictionary_learning\); cfg.json and sae.safetensors \(sparsify\)\.$"
    )
    with pytest.raises(FileNotFoundError, match=looked_for):
        load_sae(tmp_path)


def test_a_folder_of_saes_names_one_of_them(tmp_path: Path) -> None:
    save(tmp_path / "saes" / "k_2")
    save(tmp_path / "saes" / "k_3")
    for folder in (tmp_path, tmp_path / "saes"):
        with pytest.raises(FileNotFoundError, match=r"Name one of those in it, such as .*k_2\.$"):
            load_sae(folder)


def test_a_folder_of_checkpoints_names_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "ae_10.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"such as .*ae_10.pt\.$"):
        load_sae(tmp_path)


def test_a_folder_with_two_saes_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "ae.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"more than one SAE \(sae_weights.safetensors, ae.pt\)"):
        load_sae(tmp_path)
    assert load_sae(tmp_path / "sae_weights.safetensors").cfg.d_in == 6


def test_files_that_are_no_saes_are_refused(tmp_path: Path) -> None:
    for name in ("trainer_state.pt", "results.csv"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="never opened; name the folder"):
        load_sae(tmp_path / "trainer_state.pt")
    with pytest.raises(ValueError, match=r"results.csv is not a file with an SAE"):
        load_sae(tmp_path / "results.csv")


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_sae("~/mine").cfg.d_in == 6


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    devices = ["nonsense"] if torch.cuda.is_available() else ["nonsense", "cuda"]
    for device in devices:
        with pytest.raises(ValueError, match=f"the device '{device}' cannot be used"):
            load_sae(save(tmp_path), device=device)


def test_the_device_is_the_one_asked_for(tmp_path: Path) -> None:
    sae = load_sae(save(tmp_path), device="meta")
    assert sae.W_dec.device.type == sae.device.type == sae.cfg.device == "meta"


def test_importing_it_does_not_import_sae_lens() -> None:
    code = "import sys\nimport sparse_but_wrong.saes.load\nprint('sae_lens' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
