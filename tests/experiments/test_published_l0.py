"""The L0s of published SAEs: what is read from names, and when the claim fails."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup

from sparse_but_wrong.experiments.published_l0 import (
    PUBLISHED_L0,
    judge_shares,
    published_saes,
    with_elbows,
)
from tests.experiments.tiny import finished


def release(
    saes: dict[str, str],
    expected_l0: dict[str, float] | None = None,
    *,
    name: str = "some-res",
    model: str = "org/gemma-2-2b",
    repo_id: str = "org/repo",
) -> PretrainedSAELookup:
    return PretrainedSAELookup(
        release=name,
        repo_id=repo_id,
        model=model,
        conversion_func=None,
        saes_map=saes,
        expected_var_explained={},
        expected_l0=expected_l0 or {},
        neuronpedia_id={},
        norm_scaling_factor={},
        config_overrides=None,
    )


def one(path: str, **others: object) -> dict:
    lookup = release({path: path}, **others)  # pyright: ignore[reportArgumentType]
    (found,) = published_saes({lookup.release: lookup}).to_dict("records")
    return found


@pytest.mark.parametrize(
    ("path", "l0"),
    [
        ("layer_0/width_16k/average_l0_105", 105),
        ("resid_post_layer_7/l0-40", 40),
        ("blocks.3.hook_resid_post/k_64", 64),
        ("blocks.3.hook_resid_post_topk_32", 32),
        ("batch_topk=128", 128),
    ],
)
def test_an_l0_in_a_name_is_read(path: str, l0: int) -> None:
    assert (one(path)["l0"], one(path)["l0_source"]) == (l0, "name")


@pytest.mark.parametrize(
    "path",
    [
        "layer_0_width_16k_l0_big",  # a word
        "l0r_8x",  # layer 0
        "v5_32k_layer_0",  # 32 thousand
        "gemma-2-2b_topk_width-2pow12/resid_post_layer_12/trainer_0",
        "matryoshka_batch_top_k_width-2pow14",
        "sweep_topk_ctx128",
        "average_l0_71/and_l0_72",  # which of the two?
        "lowl0",
        "average_l0_0",
    ],
)
def test_what_is_ambiguous_stays_unknown(path: str) -> None:
    assert math.isnan(one(path)["l0"])
    assert one(path)["l0_source"] == ""


def test_the_directory_comes_before_the_name_and_its_zero_is_unknown() -> None:
    found = one("average_l0_71", expected_l0={"average_l0_71": 70})
    assert (found["l0"], found["l0_source"]) == (70, "directory")
    found = one("average_l0_71", expected_l0={"average_l0_71": 0.0})
    assert (found["l0"], found["l0_source"]) == (71, "name")


@pytest.mark.parametrize(
    ("path", "name", "site", "layer"),
    [
        ("layer_12/width_16k/average_l0_82", "gemma-scope-2b-pt-res", "residual", 12),
        ("layer_3/width_16k/average_l0_82", "gemma-scope-2b-pt-att", "attention", 3),
        ("layer_3/width_16k/average_l0_82", "gemma-scope-2b-pt-mlp", "mlp", 3),
        ("layer_3/width_16k/average_l0_82", "gemma-scope-2b-pt-transcoders", "transcoder", 3),
        ("embedding/width_4k/average_l0_6", "gemma-scope-2b-pt-res", "embedding", None),
        ("blocks.8.hook_resid_pre", "gpt2-small-res-jb", "residual", 8),
        ("blocks.8.hook_mlp_out", "gpt2-small-mlp-tm", "mlp", 8),
        ("blocks.8.hook_z", "gpt2-small-hook-z-kk", "attention", 8),
        ("l14r_8x", "llama_scope_lxr_8x", "residual", 14),
        ("l14a_8x", "llama_scope_lxa_8x", "attention", 14),
        ("l14m_8x", "llama_scope_lxm_8x", "mlp", 14),
        ("layer7", "qwen-scope", "", 7),
    ],
)
def test_site_and_layer(path: str, name: str, site: str, layer: int | None) -> None:
    found = one(path, name=name)
    assert found["site"] == site
    assert found["layer"] == layer if layer is not None else pd.isna(found["layer"])


def test_several_names_of_one_file_are_one_sae_and_checkpoints_are_none() -> None:
    path = "layer_5/width_16k/average_l0_68"
    directory = {
        "canonical": release({"layer_5/width_16k/canonical": path}, name="canonical"),
        "res": release({path: path}, {path: 66.0}, name="res"),
        "other": release({"layer_5": path}, name="other", repo_id="org/elsewhere"),
        "training": release({"trainer_0_step_500": "checkpoint"}, name="training"),
    }
    table = published_saes(directory)
    # The canonical entry has its L0 from the path, so it stands for both.
    assert table["l0"].tolist() == [68, 68]
    assert table["entries"].tolist() == [2, 1]
    assert set(table["model"]) == {"gemma-2-2b"}


def published(
    l0s: dict[int, list[float]], architecture: str = "", **others: object
) -> pd.DataFrame:
    rows = [
        {
            "release": "r",
            "model": "gemma-2-2b",
            "sae_id": f"{layer}_{i}",
            "site": "residual",
            "layer": layer,
            "architecture": architecture,
            "l0": l0,
            "l0_source": "" if math.isnan(l0) else "directory",
            "entries": 1,
            **others,
        }
        for layer, values in l0s.items()
        for i, l0 in enumerate(values)
    ]
    return with_elbows(pd.DataFrame(rows).astype({"layer": "Int64"}))


def test_shares_hold_where_most_saes_are_below_every_elbow() -> None:
    verdict = judge_shares(published({5: [50, 100, 300], 12: [20, 60], 13: [1000]}))
    assert verdict.outcome == "holds"
    assert [check.measured for check in verdict.checks] == [
        "2 of 3 (67%); their median L0 is 100",
        "2 of 2 (100%); their median L0 is 40",
    ]
    assert any("Llama-3.2-1b layer 7 the directory has no SAE" in r for r in verdict.remarks)
    assert any("5 of 6 (83%)" not in r and "4 of 6 (67%)" in r for r in verdict.remarks)


def test_shares_fail_where_half_or_fewer_are_below() -> None:
    verdict = judge_shares(published({5: [50, 200], 12: [20, 60]}))  # 200 is at the elbow
    assert [check.holds for check in verdict.checks] == [False, True]


def test_jumprelu_has_an_elbow_of_its_own_in_layer_12() -> None:
    l0s = {12: [230.0, 240.0, 260.0]}
    assert judge_shares(published(l0s, "jumprelu")).outcome == "holds"
    assert judge_shares(published(l0s, "batchtopk")).outcome == "fails"


def test_other_sites_do_not_count() -> None:
    verdict = judge_shares(published({5: [50.0]}, site="mlp"))
    assert verdict.outcome == "not judged"


def test_unknown_l0s_are_counted_and_said_where_they_could_overturn_the_claim() -> None:
    verdict = judge_shares(published({5: [50, math.nan, math.nan]}))
    assert verdict.checks[0].measured.endswith("the L0 of 2 more is not known")
    assert "if all of them are above the elbow, 1 of 3 (33%)" in verdict.remarks[0]
    assert "none of known L0" in judge_shares(published({5: [math.nan]})).remarks[0]


def test_it_runs_on_the_directory_that_is_installed(tmp_path: Path) -> None:
    run = finished(PUBLISHED_L0, tmp_path / "run")
    table = run.tables["published_saes"].frame
    known = table.loc[table["l0"].notna()]
    assert len(known) > 1000
    assert min(known["l0"].tolist()) > 0
    assert (table["l0_source"] != "").tolist() == table["l0"].notna().tolist()
    assert sum(table["entries"].tolist()) > len(table)
    # google/gemma-scope-2b-pt-res, whose names carry the L0.
    (scope,) = table.loc[
        (table["release"] == "gemma-scope-2b-pt-res")
        & (table["sae_id"] == "layer_12/width_16k/average_l0_82")
    ].to_dict("records")
    assert (scope["l0"], scope["site"], scope["layer"]) == (82, "residual", 12)
    assert (scope["architecture"], scope["elbow"]) == ("jumprelu", 250)
    assert [check.claim.split(" have ")[0].rsplit(" of ")[-1] for check in run.verdict.checks] == [
        "gemma-2-2b layer 5",
        "gemma-2-2b layer 12",
    ]
    assert (run.folder.plots_path / "overview.png").stat().st_size > 1000
