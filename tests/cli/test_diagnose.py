"""`sbw diagnose` on files, as a user has them."""

from __future__ import annotations

import errno
import html
import json
import re
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import sae_lens
import torch

from sparse_but_wrong import atomic
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.saes.load import load_sae
from tests.activations.caches import write_cache
from tests.activations.tiny_model import D_IN, make_tiny_model, write_tasks
from tests.cli.conftest import Sbw
from tests.report.folders import write_bare_run

D, H = 6, 12

pytestmark = pytest.mark.usefixtures("no_figures")


def batchtopk(threshold: float) -> sae_lens.BatchTopKTrainingSAE:
    torch.manual_seed(0)
    config = sae_lens.BatchTopKTrainingSAEConfig(d_in=D, d_sae=H, k=3)
    sae = sae_lens.BatchTopKTrainingSAE(config)
    sae.topk_threshold.fill_(threshold)
    return sae


def jumprelu(
    coefficient: float = 1.0, threshold: float = 0.0, d_in: int = D, **metadata: str
) -> sae_lens.JumpReLUTrainingSAE:
    torch.manual_seed(0)
    config = sae_lens.JumpReLUTrainingSAEConfig(d_in=d_in, d_sae=H, l0_coefficient=coefficient)
    for name, value in metadata.items():
        config.metadata[name] = value
    sae = sae_lens.JumpReLUTrainingSAE(config)
    sae.threshold.data.fill_(threshold)
    return sae


def save_topk(folder: str, k: object) -> None:
    """A TopK SAE whose config names another k than it was saved with."""
    sae_lens.TopKSAE(sae_lens.TopKSAEConfig(d_in=D, d_sae=H, k=3)).save_model(folder)
    file = Path(folder, "cfg.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "k": k}))


def save_run(path: str, saes: dict[str, Any], status: str = "finished") -> RunFolder:
    """A run's folder, as far as what is measured of it goes; None for SAEs that are not there."""
    folder = write_bare_run(Path(path), status=status)
    folder.manifest["spec"]["saes"] = [{"sae_id": sae_id, "world": "world"} for sae_id in saes]
    folder.write_manifest()
    for sae_id, sae in saes.items():
        if sae is not None:
            sae.save_model(folder.sae_path(sae_id))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    acts = np.random.default_rng(0).normal(size=(500, D)).astype(np.float32)
    np.save(folder / "acts.npy", acts)
    batchtopk(0.5).save_model(folder / "batchtopk")
    jumprelu().save_model(folder / "jumprelu")
    jumprelu(d_in=D + 1).save_model(folder / "other")
    return folder


class Diagnosis:
    """What was printed, and what was written."""

    def __init__(self, out: str, err: str, folder: Path) -> None:
        self.out, self.err = out, err
        page = re.sub(r"<[^>]*>", " ", (folder / "report.html").read_text(encoding="utf-8"))
        self.page = html.unescape(" ".join(page.split()))
        self.table = pd.read_csv(folder / "saes.csv").set_index("sae")

    def says(self, pattern: str) -> bool:
        """Whether a remark is printed and on the page."""
        printed, shown = (re.search(pattern, text) for text in (self.out, self.page))
        assert (printed is None) == (shown is None)
        return printed is not None


Diagnose = Callable[..., Diagnosis]


@pytest.fixture
def diagnose(sbw: Sbw, saved: Path) -> Diagnose:
    for path in saved.iterdir():
        Path(path.name).symlink_to(path)
    numbers = count()

    def run(line: str, activations: str = "acts.npy", code: int = 0) -> Diagnosis:
        folder = Path(f"out-{next(numbers)}")
        done = sbw(f"diagnose {line} --activations {activations} --out {folder}", code)
        return Diagnosis(*done, folder)

    return run


def test_prints_a_table_and_writes_a_report(diagnose: Diagnose) -> None:
    found = diagnose("batchtopk jumprelu --batch-size 50")
    assert "2 SAEs on 500 of 500 samples" in found.out
    assert found.out.endswith("Report: out-0/report.html\n")
    assert found.table["n_batches"].tolist() == [10, 10]
    # The BatchTopK SAE by its threshold, not by the k it picks per batch.
    with torch.no_grad():
        acts = load_sae("batchtopk").encode(torch.from_numpy(np.load("acts.npy")))
    l0 = (acts != 0).sum(1).double().mean().item()
    assert found.table.loc["batchtopk", "l0"] == pytest.approx(l0)
    assert abs(l0 - 3) > 0.05


@pytest.mark.parametrize(
    ("options", "n_batches", "n_samples"),
    # 500 samples: batches of 31, and one of what is left. Fewer samples are whole batches.
    [("", 17, 500), ("--samples 210 --batch-size 100", 2, 200)],
)
def test_samples_and_batches(
    options: str, n_batches: int, n_samples: int, diagnose: Diagnose
) -> None:
    found = diagnose(f"jumprelu {options}")
    assert f"on {n_samples} of 500 samples" in found.out
    table = found.table
    assert table["n_batches"].tolist() == [n_batches]
    assert table["n_samples"].tolist() == [n_samples]
    assert 0 < table["mse_standard_error"].tolist()[0] < table["mse"].tolist()[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("other", r"other: .* width 7, but those of acts.npy have 6"),
        ("missing", "there is no folder or file"),
        ("missing other", "missing: .* other: "),
        ("jumprelu --batch-size 100 --samples 50", "less than a batch"),
        ("no_run", r"no_run/manifest\.json is damaged"),
        ("unfinished", "unfinished is a run without a finished SAE"),
        # Known before SAEs are loaded, of which there is none.
        ("missing --out file", "file is a file"),
        ("missing --out file/below", "file is a file"),
        ("missing --out link", "a link that leads nowhere"),
        ("missing --out full", "full is not empty"),
    ],
)
@pytest.mark.usefixtures("diagnose")
def test_bad_input(line: str, message: str, sbw: Sbw) -> None:
    Path("file").write_text("mine")
    Path("link").symlink_to("nowhere")
    Path("full/mine").mkdir(parents=True)
    save_run("no_run", {"../a": None})
    save_run("unfinished", {"a": None}, status="unfinished")
    sbw.refuses(f"diagnose {line} --activations acts.npy", message)


def test_two_folders_of_one_name_are_told_apart(diagnose: Diagnose) -> None:
    shutil.copytree("jumprelu", "below/jumprelu")
    assert diagnose("jumprelu below/jumprelu").table.index.tolist() == [
        *("jumprelu", "below/jumprelu")
    ]


def test_bad_saes_are_named_and_the_others_are_measured(diagnose: Diagnose) -> None:
    Path("empty").mkdir()
    shutil.copytree("jumprelu", "damaged")
    weights = Path("damaged/sae_weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:200])
    ks: dict[str, object] = {"k_300": 300, "k_none": None, "k_text": "3"}
    for name, k in ks.items():
        save_topk(name, k)
    bad = ["missing", "empty", "other", "damaged", *ks]
    found = diagnose(f"jumprelu {' '.join(bad)} batchtopk", code=1)
    assert found.table.index.tolist() == ["jumprelu", "batchtopk"]
    lines = re.findall(r"^sbw: not evaluated: (\w+): (.*)$", found.err, re.MULTILINE)
    assert {name for name, _ in lines} == set(bad)
    assert "Not evaluated" in found.page
    for _, why in lines:
        assert " ".join(why.split()[:3]) in found.page


def test_of_a_run_all_is_evaluated_that_is_as_it_was(diagnose: Diagnose) -> None:
    saes = {name: jumprelu() for name in ("a", "damaged", "changed")}
    run = save_run("run", {**saes, "gone": None})
    for name in ("a", "changed"):
        run.seal(run.sae_path(name))
    run.write_manifest()
    Path("run/saes/damaged/sae_weights.safetensors").write_bytes(b"no weights")
    weights = Path("run/saes/changed/sae_weights.safetensors")
    content = bytearray(weights.read_bytes())
    content[-5] ^= 0x40
    weights.write_bytes(content)
    found = diagnose("run", code=1)
    assert found.table.index.tolist() == ["a"]
    for pattern in ("damaged: ", "changed: .*content has changed", "gone: .*is missing"):
        assert re.search(f"not evaluated: {pattern}", found.err)
    assert re.search(r"\bchanged\b.*content has changed", found.page)
    assert re.search(r"\bgone\b.*is missing", found.page)
    # What is still to come of another run is no failure.
    save_run("other_run", {"a": jumprelu(), "b": None}, status="unfinished")
    assert re.search(r"1 of 2 SAEs .*not there.*: b", diagnose("other_run").err)


def test_a_full_disk_is_named_and_the_table_is_printed_all_the_same(
    diagnose: Diagnose, sbw: Sbw, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    del diagnose
    monkeypatch.setattr(atomic, "write_bytes", full)
    done = sbw("diagnose jumprelu --activations acts.npy --out out", code=2)
    assert re.search("disk of out is full.*--out", done.err)
    assert re.search(r"jumprelu +12 ", done.out)
    assert not Path("out").exists()


def test_what_the_metrics_say_of_training_is_remarked(diagnose: Diagnose) -> None:
    early = batchtopk(0.001)
    early.save_model("early")
    # Exported without its k, and so with what the metadata says of it.
    early.save_inference_model("exported")
    x = torch.from_numpy(np.load("acts.npy"))
    with torch.no_grad():
        acts = torch.relu(early.process_sae_in(x) @ early.W_enc) * early.W_dec.norm(dim=1)
    batchtopk(float(acts.flatten().sort(descending=True).values[3 * 500])).save_model("settled")
    bad = jumprelu()
    bad.W_dec.data.mul_(300)
    saes = {f"c{c:g}": jumprelu(c, t) for c, t in ((1.0, 0.0), (10.0, 0.1), (100.0, 0.1))}
    save_run("run", {**saes, "bad": bad})
    found = diagnose("early exported settled run")
    l0 = found.table["l0"].to_dict()
    assert l0["early"] > 5
    assert found.says(
        rf"{l0['early']:.3g} at k = 3 \(early\), {l0['exported']:.3g} at k = 3 \(exported\)"
    )
    assert not found.says(r"at k = 3 \(settled\)")
    explained = found.table["variance_explained"].to_dict()["bad"]
    assert explained < -1
    assert found.says(rf"below 0.* {explained:.3g} \(bad\)")
    assert found.says(
        rf"coefficient 10 on: {l0['c10']:.4g} there \(c10\) and {l0['c100']:.4g} at 100 \(c100\)"
    )


def test_an_sae_of_another_hook_is_refused_and_one_of_another_model_remarked(
    diagnose: Diagnose,
) -> None:
    x = torch.from_numpy(np.load("acts.npy"))
    write_cache(Path("cache"), x, model="gpt2", hook="transformer.h.8")
    saes = {
        "same": jumprelu(model_name="gpt2-small", hook_name="blocks.9.hook_resid_pre"),
        "layer": jumprelu(model_name="gpt2-small", hook_name="blocks.9.hook_resid_post"),
        "model": jumprelu(model_name="gemma-2-2b", hook_name="blocks.8.hook_resid_post"),
        "toy": jumprelu(),
    }
    save_run("run", saes)
    refused = diagnose("run", "cache", code=1)
    assert refused.table.index.tolist() == ["same", "model", "toy"]
    for text in (refused.err, refused.page):
        assert re.search(r"layer:? it reads blocks\.9\.hook_resid_post, .*h\.8\b.*--any-hook", text)
    assert refused.says(r"hook of the SAEs is not on record: toy\.")
    # Those of activations without a record are not told apart.
    assert diagnose("run").says("hook of these activations is not on record: same, layer, model")
    found = diagnose("run --any-hook", "cache")
    assert found.says(r"another model .*gpt2: gemma-2-2b \(model\)\.")
    assert found.says(r"another hook .*h\.8: blocks\.9\.hook_resid_post \(layer\)\.")


def test_zeros_and_outliers_are_counted_and_can_be_left_out(diagnose: Diagnose, sbw: Sbw) -> None:
    # Two of 128 samples are zeros and one, in the middle, is huge.
    x = np.random.default_rng(3).normal(size=(128, D)).astype(np.float32)
    x[[5, 90]] = 0
    x[77] = np.abs(x[77]) * 1000
    np.save("odd.npy", x)
    jumprelu(threshold=20.0).save_model("sae")
    config: Any = {"d_in": D, "d_sae": H, "normalize_activations": "constant_norm_rescale"}
    sae_lens.StandardSAE(sae_lens.StandardSAEConfig(**config)).save_model("rescaled")
    # One cannot normalise zeros, and leaves the other alone.
    whole = diagnose("sae rescaled", "odd.npy", code=1)
    assert re.search(r"rescaled: .*constant_norm_rescale.*--exclude-outliers", whole.err)
    sbw.refuses("diagnose rescaled --activations odd.npy", r"No SAE can be evaluated\. rescaled: ")
    assert whole.says(r"zeros: 2 of 128")
    assert whole.says(r"Outliers: 1 of 128 .*sample 77,.*--exclude-outliers")
    assert whole.table["n_samples"].to_dict() == {"sae": 128}
    rest = diagnose("sae rescaled --exclude-outliers", "odd.npy")
    assert rest.says(r"Left out: 2 samples of zeros and 1 with")
    assert not rest.says("Outliers:")
    assert rest.table["n_samples"].to_dict() == {"sae": 125, "rescaled": 125}
    # The huge sample alone had made latents look alive.
    dead = [found.table["dead_latents"].to_dict()["sae"] for found in (whole, rest)]
    assert dead[0] < H == dead[1]


def test_special_tokens_of_a_sae_lens_cache_can_be_left_out(diagnose: Diagnose) -> None:
    """As its CacheActivationsRunner writes them: a row per sequence, token ids beside."""
    hook, bos = "blocks.0.hook_resid_post", 7
    acts = torch.randn(16, 8, D, generator=torch.Generator().manual_seed(0))
    acts[:, 0] *= 1e4
    acts[3, 3] = 0
    tokens = [[bos, *range(10, 17)]] * 16
    columns = {hook: acts.tolist(), "token_ids": tokens}
    datasets.Dataset.from_dict(columns).save_to_disk("cache")
    jumprelu(hook_name="blocks.7.hook_resid_post").save_model("sae")
    found = diagnose(f"sae --exclude-token {bos} --any-hook", "cache")
    assert found.says("16 samples of the tokens")
    assert found.says(r"another hook .*blocks\.0\..*: blocks\.7\.hook_resid_post \(sae\)")
    assert not found.says("Outliers:")
    assert found.table["n_samples"].tolist() == [112]
    both = diagnose(f"sae --exclude-token {bos} --any-hook --exclude-outliers", "cache")
    assert both.says("16 samples of the tokens")
    assert both.says("1 samples of zeros and 0 with")
    assert both.table["n_samples"].tolist() == [111]


def test_saes_are_probed_for_labels_of_texts(diagnose: Diagnose, sbw: Sbw) -> None:
    make_tiny_model(Path("model"))
    write_tasks(Path("tasks"), n_tasks=3)
    x = torch.randn(64, D_IN, generator=torch.Generator().manual_seed(0))
    write_cache(Path("cache"), x, model="model")
    write_cache(Path("other_hook"), x, model="model", hook="model.layers.1")
    for name, threshold in (("low", 0.0), ("high", 50.0)):
        jumprelu(threshold=threshold, d_in=D_IN).save_model(name)
    found = diagnose("low high --probing tasks --probing-texts 40", "cache")
    assert "3 tasks of tasks" in found.out
    table = pd.read_csv("out-0/probing.csv").set_index("sae")
    # Of dead latents a probe reads nothing.
    auc_1 = table["auc_1"].to_dict()
    assert auc_1["high"] == 0.5
    assert auc_1["low"] != 0.5
    assert table["below_best_16"].tolist().count(0) == 1
    assert len(pd.read_csv("out-0/probing_details.csv")) == 3 * (2 * 2 + 2 + 1)
    low = f"{table['auc_16'].to_dict()['low']:.4g} ± "
    assert found.says("Sparse probing")
    assert low in found.out
    assert "all 32 coordinates" in found.page
    assert sorted(path.name for path in Path("cache-probing").glob("task_*")) == [
        f"task_{i}.safetensors" for i in range(3)
    ]
    # Without the model, from what is kept.
    shutil.rmtree("model")
    diagnose("high low --probing cache-probing", "cache")
    again = pd.read_csv("out-1/probing.csv").set_index("sae")
    pd.testing.assert_frame_equal(again.loc[table.index], table)
    for line, message in (
        ("--activations other_hook --probing cache-probing", "hook model.layers.0, but .*layers.1"),
        ("--activations cache --probing cache-probing --model gpt2", "model model, .* gpt2"),
        ("--activations cache --probing empty", "no folder empty"),
        ("--activations cache --probing tasks --probing-length 5", "5 characters"),
    ):
        sbw.refuses(f"diagnose low {line}", message)
    np.save("bare.npy", x.numpy())
    sbw.refuses(
        "diagnose low --activations bare.npy --probing tasks", "no model on record.*--model"
    )
