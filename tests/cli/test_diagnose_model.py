"""`sbw diagnose` where the language model that the activations come from is at hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sae_lens
import torch

from sparse_but_wrong.activations.cache import cache_activations
from sparse_but_wrong.activations.language_model import open_language_model
from sparse_but_wrong.activations.loss_text import open_loss_text
from sparse_but_wrong.activations.stored import open_activations
from sparse_but_wrong.metrics.model_loss import model_loss
from sparse_but_wrong.saes.load import load_sae
from tests.activations.caches import write_cache
from tests.activations.tiny_model import BOS, D_IN, EOS, PAD, make_tiny_model, write_text
from tests.cli.conftest import Sbw

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    model = open_language_model(str(make_tiny_model(folder / "model")), "model.layers.0")
    write_text(folder / "plays", n_words=150, n_documents=3)
    sizes: dict[str, Any] = {"n_tokens": 400, "context_size": 16, "batch_size": 4}
    sizes["samples_per_shard"] = 150
    cache_activations(model, text=folder / "plays", out=folder / "acts", **sizes)
    sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(D_IN, 48)).save_model(folder / "sae")
    return folder


@pytest.fixture
def here(made: Path, sbw: Sbw) -> Sbw:
    for name in ("model", "plays", "acts", "sae"):
        Path(name).symlink_to(made / name)
    return sbw


def test_the_loss_with_reconstructions(here: Sbw) -> None:
    write_text(Path("others"), n_words=100, n_documents=2, seed=1)
    line = "diagnose sae --activations acts --loss-text others --loss-tokens 100 --out out"
    said = here(line).out
    found = pd.read_csv("out/loss.csv").set_index("sae")
    acts = open_activations("acts")
    text = open_loss_text(acts, "others", n_tokens=100)
    again = model_loss({"sae": load_sae("sae")}, *text)
    assert found.loc["sae", "kl"] == pytest.approx(again.table.loc["sae", "kl"])
    assert f"{found.loc['sae', 'cross_entropy']:.4g} ± " in said
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "cross_entropy, mean" in page
    # What a cache would hold, and no more sequences of it than are needed.
    assert not text.replaced[:, :2].any()
    special = torch.isin(text.tokens, torch.tensor([BOS, EOS, PAD]))
    assert not (text.replaced & special).any()
    assert text.replaced[:, 2:].logical_or(special[:, 2:]).all()
    assert 100 <= text.replaced.sum() < 114
    every = acts.read(0, acts.n_samples).float().mean(0)
    assert text.mean.tolist() == pytest.approx(every.tolist(), abs=1e-5)


def test_a_model_that_has_moved(here: Sbw, made: Path, tmp_path: Path) -> None:
    manifest = Path("moved/manifest.json")
    shutil.copytree("acts", "moved")
    manifest.write_text(manifest.read_text().replace(str(made / "model"), str(tmp_path / "gone")))
    line = "diagnose sae --activations moved --loss-text plays --loss-tokens 50"
    here.refuses(line, "gone")
    here(f"{line} --model model --out out")
    assert Path("out/loss.csv").is_file()


def test_what_cannot_be_run_is_refused(here: Sbw) -> None:
    acts = open_activations("acts").read(0, 100).float()
    write_cache(Path("wide"), acts[:, :7], model="model")
    sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(7, 9)).save_model("narrow")
    line = "diagnose narrow --activations wide --loss-text plays"
    here.refuses(line, f"width {D_IN} at model.layers.0, but those of wide have 7")
    here.refuses("diagnose sae --activations acts --loss-text nowhere", "nowhere")
    here.refuses(
        "diagnose sae --activations acts/shard-00000.safetensors --loss-text plays", "record"
    )
    Path("short.txt").write_text("ba be")
    here.refuses("diagnose sae --activations acts --loss-text short.txt", "16 tokens")


def test_examples_of_latents_as_the_text_has_them(here: Sbw, made: Path) -> None:
    here("diagnose sae --activations acts --examples 6 --out out")
    lines = [json.loads(line) for line in Path("out/examples.jsonl").read_text().splitlines()]
    assert {line["sae"] for line in lines} == {"sae"}
    assert {line["chosen"] for line in lines} == {"strongest", "densest", "random"}
    assert len({line["latent"] for line in lines}) == 6
    acts = open_activations("acts")
    words = " ".join((made / "plays" / f"{i}.txt").read_text() for i in range(3))
    sae = load_sae("sae")
    for line in lines:
        peak, latent, sample = line["activations"][line["at"]], line["latent"], line["sample"]
        rows = acts.read(sample, sample + 1).float()
        assert sae.encode(rows)[0, latent].item() == pytest.approx(peak, rel=1e-5)
        assert acts.read_token_ids(sample, sample + 1) == line["token_ids"][line["at"]]
        assert peak == max(line["activations"][max(0, line["at"] - 3) : line["at"] + 4])
        assert line["one_sequence"]
        assert len(line["tokens"]) <= 14
        assert "".join(line["tokens"]) in words
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert page.count('class="peak"') == len(lines)
    assert "first tokens of sequences" in " ".join(page.split())


def test_examples_need_tokens_and_a_tokenizer(here: Sbw) -> None:
    acts = open_activations("acts").read(0, 100).float()
    np.save("acts.npy", acts.numpy())
    here.refuses("diagnose sae --activations acts.npy --examples 3 --model model", "token_ids")
    line = "diagnose sae --activations acts/shard-00000.safetensors --examples 3"
    here.refuses(line, "not on record.*--model")
    here(f"{line} --model model --out out")
    assert Path("out/examples.jsonl").stat().st_size
