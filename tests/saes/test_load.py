"""Where SAEs are looked for, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from sparse_but_wrong.saes import load as module
from sparse_but_wrong.saes.load import load_sae


def save(folder: Path) -> Path:
    StandardSAE(StandardSAEConfig(d_in=6, d_sae=10)).save_model(folder)
    return folder


def test_a_path_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `Path`, and a name that is mistyped below a folder, are never looked up on the Hub."""
    save(tmp_path / "results/saes/k_2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ["nothing-here", "./a/b/c", "~/no/such", "~nobody-here/sae", "results/saes/k_3"]
    names += ["/abs/no/path", "a//b", "a/b/", ".hidden/b/c", "a\\b/c/d"]
    for where in (tmp_path / "no", str(tmp_path / "no"), Path("user/repo/folder"), *names):
        with pytest.raises(FileNotFoundError, match="no folder or file"):
            load_sae(where)
    for where in ("results/saes/k_2", "~/results/saes/k_2"):
        assert load_sae(where).cfg.d_sae == 10


def test_a_folder_without_an_sae_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no SAE in .*: looked for") as error:
        load_sae(tmp_path)
    for kind in (
        "cfg.json and sae_weights.safetensors (sae_lens)",
        "config.json and ae.pt (dictionary_learning)",
        "cfg.json and sae.safetensors (sparsify)",
        "params.npz (Gemma Scope)",
        "hyperparams.json and checkpoints/final.safetensors (Llama Scope)",
    ):
        assert kind in str(error.value)
    assert "Name one" not in str(error.value)


def test_a_folder_of_saes_names_one_of_them(tmp_path: Path) -> None:
    save(tmp_path / "saes" / "k_2")
    save(tmp_path / "saes" / "k_3")
    for folder in (tmp_path, tmp_path / "saes"):
        with pytest.raises(FileNotFoundError, match=r"Name one of those in it, such as .*k_2\.$"):
            load_sae(folder)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/ae_10.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"such as .*ae_10.pt\.$"):
        load_sae(tmp_path / "checkpoints")


def test_a_folder_with_two_saes_and_files_of_none_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "ae.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"more than one SAE \(sae_weights.safetensors, ae.pt\)"):
        load_sae(tmp_path)
    assert load_sae(tmp_path / "sae_weights.safetensors").cfg.d_in == 6
    for name in ("trainer_state.pt", "results.csv"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="never opened; name the folder"):
        load_sae(tmp_path / "trainer_state.pt")
    with pytest.raises(ValueError, match=r"results.csv is not a known file"):
        load_sae(tmp_path / "results.csv")


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    devices = ["nonsense"] if torch.cuda.is_available() else ["nonsense", "cuda"]
    for device in devices:
        with pytest.raises(ValueError, match=f"the device '{device}' cannot be used"):
            load_sae(save(tmp_path), device=device)
    sae = load_sae(tmp_path, device="meta")
    assert sae.W_dec.device.type == sae.device.type == sae.cfg.device == "meta"


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
def test_what_is_no_file_is_an_error_with_a_name(name: str, tmp_path: Path) -> None:
    for number, make in enumerate(
        (Path.mkdir, lambda file: file.symlink_to(file), lambda file: file.symlink_to("nowhere"))
    ):
        folder = save(tmp_path / str(number))
        (folder / name).unlink()
        make(folder / name)
        for where in (folder, folder / name):
            with pytest.raises(OSError, match=str(folder)):
                load_sae(where)


DEEP = "[" * 100_000 + "]" * 100_000


def test_damaged_files_are_errors_with_a_name(tmp_path: Path) -> None:
    folder = save(tmp_path)
    for text in ("", "null", "[]", "{", DEEP, f'{{"a": {DEEP}}}', "\ufeff{}", "\udcff{"):
        (folder / "cfg.json").write_text(text, errors="surrogateescape")
        with pytest.raises(ValueError, match=r"cfg\.json"):
            load_sae(folder)
    file = save(tmp_path) / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"sae_weights.safetensors is damaged"):
        load_sae(tmp_path)


def test_names_of_any_length_make_a_short_message(tmp_path: Path) -> None:
    torch.save({"\n" * 3 + "x" * 100_000: torch.ones(2)}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"ae\.pt") as error:
        load_sae(tmp_path)
    assert len(str(error.value)) < 1_000
    assert "\n" not in str(error.value)


def test_a_reader_that_stumbles_is_one_line_that_names_the_sae(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(_: Path) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(module, "_KINDS", [kind._replace(read=stumble) for kind in module._KINDS])
    with pytest.raises(ValueError, match=r"mine cannot be loaded \(ZeroDivisionError: division by"):
        load_sae(save(tmp_path / "mine"))
