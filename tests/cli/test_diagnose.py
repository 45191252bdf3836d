"""`sbw diagnose` on files, as a user has them."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from sparse_but_wrong import atomic
from sparse_but_wrong.cli.main import cli, main
from sparse_but_wrong.runs.folder import RunFolder
from tests.activations.caches import write_cache

D, H = 6, 12


@pytest.fixture
def without_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing: the figure takes longer than all else together."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(
        "sparse_but_wrong.report.evaluation.plot_evaluations", lambda _: Figure(figsize=(1, 1))
    )


quickly = pytest.mark.usefixtures("without_figure")


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


def run(place: Path, *arguments: str, activations: str | Path = "acts.npy") -> Result:
    return CliRunner().invoke(
        cli, ["diagnose", *arguments, "--activations", str(place / activations)]
    )


def page_text(out: Path) -> str:
    """The words of a page."""
    import html

    text = re.sub(r"<[^>]*>", " ", (out / "report.html").read_text(encoding="utf-8"))
    return html.unescape(" ".join(text.split()))


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


@quickly
def test_there_are_enough_batches_for_standard_errors(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(place, str(place / "jumprelu"), "--out", str(out))
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out / "saes.csv")
    # 500 samples: batches of 31, and one of what is left.
    assert table["n_batches"].tolist() == [17]
    assert table["n_samples"].tolist() == [500]
    assert 0 < table["mse_standard_error"].tolist()[0] < table["mse"].tolist()[0]


@quickly
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


@quickly
def test_two_folders_of_one_name_are_told_apart(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "jumprelu", tmp_path / "jumprelu")
    out = tmp_path / "out"
    done = run(place, str(place / "jumprelu"), str(tmp_path / "jumprelu"), "--out", str(out))
    assert done.exit_code == 0, done.output
    assert len(set(pd.read_csv(out / "saes.csv")["sae"])) == 2


def a_topk(folder: Path, k: object) -> None:
    """A TopK SAE whose config names another k than it was saved with."""
    from sae_lens import TopKSAE, TopKSAEConfig

    TopKSAE(TopKSAEConfig(d_in=D, d_sae=H, k=3)).save_model(folder)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "k": k}))


def damaged(folder: Path, place: Path) -> None:
    """An SAE with half of its weights."""
    shutil.copytree(place / "jumprelu", folder)
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])


@quickly
@pytest.mark.parametrize("kind", ["missing", "empty", "other width", "damaged", 300, None, "3"])
def test_one_bad_sae_is_named_and_the_others_are_measured(
    place: Path, tmp_path: Path, kind: object
) -> None:
    bad, out = tmp_path / "bad", tmp_path / "out"
    if kind == "empty":
        bad.mkdir()
    elif kind == "other width":
        shutil.copytree(place / "other", bad)
    elif kind == "damaged":
        damaged(bad, place)
    elif kind != "missing":
        a_topk(bad, kind)
    names = [str(place / "jumprelu"), str(tmp_path / "bad"), str(place / "batchtopk")]
    done = run(place, *names, "--out", str(out))
    assert done.exit_code == 1, done.output
    assert pd.read_csv(out / "saes.csv")["sae"].tolist() == ["jumprelu", "batchtopk"]
    (line,) = [line for line in done.stderr.splitlines() if "not evaluated" in line]
    assert "bad" in line
    assert "Not evaluated" in page_text(out)
    assert " ".join(line.split(": ", 3)[3].split()[:3]) in page_text(out)


@quickly
def test_the_command_ends_with_that_exit_code(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["diagnose", str(place / "jumprelu"), str(tmp_path / "missing")]
    where = ["--activations", str(place / "acts.npy"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["sbw", *arguments, *where])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1


@quickly
def test_without_a_single_good_sae_nothing_is_written(place: Path, tmp_path: Path) -> None:
    a_topk(tmp_path / "one", 300)
    out = tmp_path / "out"
    done = run(place, str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(out))
    assert isinstance(done.exception, ValueError)
    for word in ("2 SAEs", "one: ", "two: "):
        assert word in str(done.exception)
    assert not out.exists()


def a_run(path: Path, saes: dict[str, Any], **manifest: Any) -> Path:
    """A finished run's folder, as far as what is measured of it goes."""
    path.mkdir()
    content = {
        "format_version": 2,
        "experiment": "mine",
        "status": "finished",
        "quick": False,
        "seed": 0,
        "device": "cpu",
        "spec": {
            **{"name": "mine", "title": "A sweep", "claim": "–", "worlds": {"only": {}}},
            "saes": [{"sae_id": sae_id, "world": "only"} for sae_id in saes],
        },
        "provenance": {},
        "timings": {},
        **manifest,
    }
    (path / "manifest.json").write_text(json.dumps(content))
    for sae_id, sae in saes.items():
        if sae is not None:
            sae.save_model(path / "saes" / sae_id)
    return path


def jumprelu(coefficient: float = 1.0, threshold: float = 0.0, **metadata: str) -> Any:
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

    torch.manual_seed(0)
    config = JumpReLUTrainingSAEConfig(d_in=D, d_sae=H, l0_coefficient=coefficient)
    for name, value in metadata.items():
        config.metadata[name] = value
    sae = JumpReLUTrainingSAE(config)
    sae.threshold.data.fill_(threshold)
    return sae


@quickly
def test_a_run_with_a_damaged_sae_gives_the_others(place: Path, tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", {"a": jumprelu(), "b": jumprelu(2.0), "c": None})
    (folder / "saes/b/sae_weights.safetensors").write_bytes(b"no weights")
    done = run(place, str(folder), "--out", str(tmp_path / "out"))
    assert done.exit_code == 1, done.output
    assert pd.read_csv(tmp_path / "out/saes.csv")["sae"].tolist() == ["a"]
    assert "not evaluated: b: " in done.stderr
    assert re.search(r"1 of 3 SAEs .*not there.*: c", done.stderr)


@quickly
def test_a_run_that_changed_or_lost_an_sae_says_so(place: Path, tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", {"a": jumprelu(), "b": jumprelu(2.0), "c": None})
    run_folder = RunFolder.open(folder)
    for sae_id in ("a", "b"):
        run_folder.seal(run_folder.sae_path(sae_id))
    run_folder.write_manifest()
    weights = folder / "saes/b/sae_weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 0x40
    weights.write_bytes(content)
    done = run(place, str(folder), "--out", str(tmp_path / "out"))
    assert done.exit_code == 1, done.output
    assert pd.read_csv(tmp_path / "out/saes.csv")["sae"].tolist() == ["a"]
    page = page_text(tmp_path / "out")
    assert re.search(r"\bb\b.*content has changed", page)
    assert re.search(r"\bc\b.*is missing", page)


@quickly
@pytest.mark.parametrize(
    "spec",
    [None, [], "spec", {}, {"saes": None}, {"saes": [1]}, {"saes": [{"sae_id": "../a"}]}],
    ids=str,
)
def test_a_run_without_a_list_of_saes_is_one_line(place: Path, tmp_path: Path, spec: Any) -> None:
    folder = a_run(tmp_path / "run", {"a": jumprelu()}, spec=spec)
    done = run(place, str(folder), "--out", str(tmp_path / "out"))
    assert isinstance(done.exception, ValueError), done.exception
    assert str(folder) in str(done.exception)
    assert not (tmp_path / "out").exists()


@quickly
@pytest.mark.parametrize("kind", ["file", "below a file", "dangling link", "not empty"])
def test_where_nothing_can_be_written_is_known_before_the_work(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("an SAE was loaded")

    monkeypatch.setattr("sparse_but_wrong.saes.load.load_sae", never)
    out = tmp_path / "out"
    if kind in ("file", "below a file"):
        out.write_text("mine")
    elif kind == "dangling link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        (out / "mine").mkdir(parents=True)
    if kind == "below a file":
        out = out / "below"
    done = run(place, str(place / "jumprelu"), "--out", str(out))
    assert isinstance(done.exception, OSError), done.exception
    assert str(tmp_path / "out") in str(done.exception)


@quickly
def test_a_full_disk_is_named_and_the_table_is_printed_all_the_same(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "write_bytes", full)
    out = tmp_path / "out"
    done = run(place, str(place / "jumprelu"), "--out", str(out))
    assert isinstance(done.exception, OSError)
    assert re.search(f"disk of {out} is full.*--out", str(done.exception))
    assert re.search(r"jumprelu +12 ", done.output)
    assert not out.exists()


def batchtopk(k: float, threshold: float) -> Any:
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    torch.manual_seed(0)
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D, d_sae=H, k=k))
    sae.topk_threshold.fill_(threshold)
    return sae


@quickly
def test_a_threshold_that_has_not_settled_is_remarked(place: Path, tmp_path: Path) -> None:
    early = batchtopk(3, 0.001)
    early.save_model(tmp_path / "early")
    # Exported without its k, and so with what the metadata says of it.
    early.save_inference_model(str(tmp_path / "exported"))
    names = [str(tmp_path / "early"), str(tmp_path / "exported")]
    done = run(place, *names, "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    l0 = pd.read_csv(tmp_path / "out/saes.csv")["l0"].tolist()
    assert l0[0] > 5
    for text in (done.output, page_text(tmp_path / "out")):
        assert f"{l0[0]:.3g} at k = 3 (early), {l0[1]:.3g} at k = 3 (exported)" in text


@quickly
def test_a_threshold_that_has_settled_is_not(place: Path, tmp_path: Path) -> None:
    sae = batchtopk(3, 0.0)
    with torch.no_grad():
        acts = torch.relu(
            sae.process_sae_in(torch.from_numpy(np.load(place / "acts.npy"))) @ sae.W_enc
        )
        ranked = (acts * sae.W_dec.norm(dim=1)).flatten().sort(descending=True).values
    batchtopk(3, float(ranked[3 * 500])).save_model(tmp_path / "settled")
    done = run(place, str(tmp_path / "settled"), "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert "at k = 3" not in done.output


@quickly
def test_a_negative_variance_explained_is_remarked(place: Path, tmp_path: Path) -> None:
    sae = jumprelu()
    sae.W_dec.data.mul_(300)
    sae.save_model(tmp_path / "bad")
    done = run(place, str(tmp_path / "bad"), "--out", str(tmp_path / "out"))
    (explained,) = pd.read_csv(tmp_path / "out/saes.csv")["variance_explained"].tolist()
    assert explained < -1
    for text in (done.output, page_text(tmp_path / "out")):
        assert re.search(rf"below 0.* {explained:.3g} \(bad\)", text)


@quickly
def test_activations_of_another_model_or_hook_are_remarked(place: Path, tmp_path: Path) -> None:
    x = torch.from_numpy(np.load(place / "acts.npy"))
    cache = write_cache(tmp_path / "cache", x, model="gpt2", hook="transformer.h.8")
    saes = {
        "same": jumprelu(model_name="gpt2-small", hook_name="blocks.9.hook_resid_pre"),
        "layer": jumprelu(model_name="gpt2-small", hook_name="blocks.9.hook_resid_post"),
        "model": jumprelu(model_name="gemma-2-2b", hook_name="blocks.8.hook_resid_post"),
        "toy": jumprelu(),
    }
    folder = a_run(tmp_path / "run", saes)
    done = run(place, str(folder), "--out", str(tmp_path / "out"), activations=cache)
    assert done.exit_code == 0, done.output
    for text in (done.output, page_text(tmp_path / "out")):
        assert re.search(r"another model .*gpt2: gemma-2-2b \(model\)\.", text)
        assert re.search(r"another hook .*h\.8: blocks\.9\.hook_resid_post \(layer\)\.", text)


def with_outliers(folder: Path) -> Path:
    """128 samples of which two are zeros and one, in the middle, is huge."""
    x = np.random.default_rng(3).normal(size=(128, D)).astype(np.float32)
    x[[5, 90]] = 0
    x[77] = np.abs(x[77]) * 1000
    np.save(folder / "odd.npy", x)
    return folder / "odd.npy"


@quickly
def test_zeros_and_outliers_are_counted_and_can_be_left_out(tmp_path: Path) -> None:
    acts = with_outliers(tmp_path)
    jumprelu(threshold=20.0).save_model(tmp_path / "sae")
    whole = run(tmp_path, str(tmp_path / "sae"), "--out", str(tmp_path / "all"), activations=acts)
    assert whole.exit_code == 0, whole.output
    for text in (whole.output, page_text(tmp_path / "all")):
        assert re.search(r"zeros: 2 of 128", text)
        assert re.search(r"Outliers: 1 of 128 .*sample 77,.*--exclude-outliers", text)
    rest = run(
        tmp_path,
        *(str(tmp_path / "sae"), "--exclude-outliers", "--out", str(tmp_path / "rest")),
        activations=acts,
    )
    assert rest.exit_code == 0, rest.output
    for text in (rest.output, page_text(tmp_path / "rest")):
        assert re.search(r"Left out: 2 samples of zeros and 1 with", text)
        assert "Outliers:" not in text
    with_it, without = (pd.read_csv(tmp_path / name / "saes.csv") for name in ("all", "rest"))
    assert with_it["n_samples"].tolist() == [128]
    assert without["n_samples"].tolist() == [125]
    # The huge sample alone had made latents look alive.
    assert without["dead_latents"].tolist() == [H]
    assert with_it["dead_latents"].tolist()[0] < H


@quickly
def test_special_tokens_of_a_sae_lens_cache_can_be_left_out(tmp_path: Path) -> None:
    """As its CacheActivationsRunner writes them: a row per sequence, token ids beside."""
    import datasets

    hook, bos = "blocks.0.hook_resid_post", 7
    acts = torch.randn(16, 8, D, generator=torch.Generator().manual_seed(0))
    acts[:, 0] *= 1e4
    tokens = [[bos, *range(10, 17)]] * 16
    datasets.Dataset.from_dict({hook: acts.tolist(), "token_ids": tokens}).save_to_disk(
        str(tmp_path / "cache")
    )
    jumprelu().save_model(tmp_path / "sae")
    done = run(
        tmp_path,
        *(str(tmp_path / "sae"), "--exclude-token", str(bos), "--out", str(tmp_path / "out")),
        activations=tmp_path / "cache",
    )
    assert done.exit_code == 0, done.output
    for text in (done.output, page_text(tmp_path / "out")):
        assert "16 samples of the tokens" in text
        assert "Outliers:" not in text
    assert pd.read_csv(tmp_path / "out/saes.csv")["n_samples"].tolist() == [112]


@quickly
def test_an_sae_that_cannot_normalise_a_sample_leaves_the_others_alone(tmp_path: Path) -> None:
    from sae_lens import StandardSAE, StandardSAEConfig

    acts = with_outliers(tmp_path)
    config: Any = {"d_in": D, "d_sae": H, "normalize_activations": "constant_norm_rescale"}
    StandardSAE(StandardSAEConfig(**config)).save_model(tmp_path / "rescaled")
    jumprelu().save_model(tmp_path / "plain")
    names = [str(tmp_path / "rescaled"), str(tmp_path / "plain")]
    done = run(tmp_path, *names, "--out", str(tmp_path / "out"), activations=acts)
    assert done.exit_code == 1
    assert re.search(r"rescaled: .*constant_norm_rescale.*--exclude-outliers", done.stderr)
    again = run(
        tmp_path,
        *(*names, "--exclude-outliers", "--out", str(tmp_path / "again")),
        activations=acts,
    )
    assert again.exit_code == 0, again.output
    assert pd.read_csv(tmp_path / "again/saes.csv")["sae"].tolist() == ["rescaled", "plain"]


@quickly
def test_a_saturated_coefficient_is_remarked(place: Path, tmp_path: Path) -> None:
    saes = {f"c{c:g}": jumprelu(c, t) for c, t in ((1.0, 0.0), (10.0, 0.1), (100.0, 0.1))}
    done = run(place, str(a_run(tmp_path / "run", saes)), "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    l0 = pd.read_csv(tmp_path / "out/saes.csv")["l0"].tolist()
    for text in (done.output, page_text(tmp_path / "out")):
        assert f"coefficient 10 on: {l0[1]:.4g} there (c10) and {l0[2]:.4g} at 100 (c100)" in text
    fewer = {name: saes[name] for name in ("c1", "c10")}
    done = run(place, str(a_run(tmp_path / "fewer", fewer)), "--out", str(tmp_path / "out2"))
    assert "c10" in done.output
    assert "TargetL0" not in done.output
