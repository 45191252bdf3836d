"""The L0s of published SAEs: what is read from names, and when the claim fails."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup

from sparse_but_wrong.experiments.published_l0 import (
    judge_shares,
    published_saes,
    with_elbows,
)
from sparse_but_wrong.experiments.registry import PUBLISHED_L0
from sparse_but_wrong.experiments.verdict import Verdict
from tests.experiments.tiny import finished, found, holds


def release(
    saes: dict[str, str],
    expected_l0: dict[str, float] | None = None,
    *,
    name: str = "some-res",
    repo_id: str = "org/repo",
) -> PretrainedSAELookup:
    return PretrainedSAELookup(
        release=name,
        repo_id=repo_id,
        model="org/gemma-2-2b",
        conversion_func=None,
        saes_map=saes,
        expected_var_explained={},
        expected_l0=expected_l0 or {},
        neuronpedia_id={},
        norm_scaling_factor={},
        config_overrides=None,
    )


def one(
    path: str, expected_l0: dict[str, float] | None = None, name: str = "some-res"
) -> dict[Any, Any]:
    (row,) = published_saes({name: release({path: path}, expected_l0, name=name)}).to_dict(
        "records"
    )
    return row


@pytest.mark.parametrize(
    ("path", "expected", "l0", "source"),
    [
        ("layer_0/width_16k/average_l0_105", None, 105, "name"),
        ("resid_post_layer_7/l0-40", None, 40, "name"),
        ("blocks.3.hook_resid_post/k_64", None, 64, "name"),
        ("blocks.3.hook_resid_post_topk_32", None, 32, "name"),
        ("batch_topk=128", None, 128, "name"),
        # The directory comes before the name, and its zero is unknown.
        ("average_l0_71", 70.0, 70, "directory"),
        ("average_l0_71", 0.0, 71, "name"),
        # What is ambiguous stays unknown.
        ("layer_0_width_16k_l0_big", None, None, ""),  # a word
        ("l0r_8x", None, None, ""),  # layer 0
        ("v5_32k_layer_0", None, None, ""),  # 32 thousand
        ("gemma-2-2b_topk_width-2pow12/resid_post_layer_12/trainer_0", None, None, ""),
        ("matryoshka_batch_top_k_width-2pow14", None, None, ""),
        ("sweep_topk_ctx128", None, None, ""),
        ("average_l0_71/and_l0_72", None, None, ""),  # which of the two?
        ("lowl0", None, None, ""),
        ("average_l0_0", None, None, ""),
    ],
)
def test_where_an_l0_is_read(
    path: str, expected: float | None, l0: int | None, source: str
) -> None:
    row = one(path, None if expected is None else {path: expected})
    assert row["l0"] == l0 if l0 else math.isnan(row["l0"])
    assert row["l0_source"] == source


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
    row = one(path, name=name)
    assert row["site"] == site
    assert row["layer"] == layer if layer is not None else pd.isna(row["layer"])


def test_several_names_of_one_file_are_one_sae_and_checkpoints_are_none() -> None:
    path = "layer_5/width_16k/average_l0_68"
    table = published_saes(
        {
            "canonical": release({"layer_5/width_16k/canonical": path}, name="canonical"),
            "res": release({path: path}, {path: 66.0}, name="res"),
            "other": release({"layer_5": path}, name="other", repo_id="org/elsewhere"),
            "unknown": release({"a": "b"}, name="unknown"),
            "known": release({"c": "b"}, {"c": 9.0}, name="known"),
            "training": release({"trainer_0_step_500": "checkpoint"}, name="training"),
        }
    )
    # The canonical entry has its L0 from the path, so it stands for both.
    assert table["release"].tolist() == ["canonical", "other", "known"]
    assert table["l0"].tolist() == [68, 68, 9]
    assert table["entries"].tolist() == [2, 1, 2]
    assert set(table["model"]) == {"gemma-2-2b"}


def judge(l0s: dict[int, list[float]], architecture: str = "", site: str = "residual") -> Verdict:
    """Of SAEs of gemma-2-2b with these L0s after each layer."""
    rows = [
        {
            "model": "gemma-2-2b",
            "site": site,
            "layer": layer,
            "architecture": architecture,
            "l0": l0,
            "l0_source": "" if math.isnan(l0) else "directory",
            "entries": 1,
        }
        for layer, values in l0s.items()
        for l0 in values
    ]
    table = with_elbows(pd.DataFrame(rows).astype({"layer": "Int64"}))
    return judge_shares(found(PUBLISHED_L0, math.nan, published_saes=table))


def test_shares_hold_where_most_saes_are_below_every_elbow() -> None:
    verdict = judge({5: [50, 100, 300], 12: [20, 60], 13: [1000]})
    assert verdict.outcome == "holds"
    assert [check.measured for check in verdict.checks] == [
        "2 of 3 (67%); their median L0 is 100",
        "2 of 2 (100%); their median L0 is 40",
    ]
    assert any("Llama-3.2-1b layer 7 the directory has no SAE" in r for r in verdict.remarks)
    assert any("5 of 6 (83%)" not in r and "4 of 6 (67%)" in r for r in verdict.remarks)


@pytest.mark.parametrize(
    ("l0s", "architecture", "site", "expected"),
    [
        ({5: [50, 200], 12: [20, 60]}, "", "residual", [False, True]),  # 200 is at the elbow
        # JumpReLU has an elbow of its own in layer 12.
        ({12: [230.0, 240.0, 260.0]}, "jumprelu", "residual", [True]),
        ({12: [230.0, 240.0, 260.0]}, "batchtopk", "residual", [False]),
        ({5: [50.0]}, "", "mlp", []),
    ],
)
def test_which_shares_count(
    l0s: dict[int, list[float]], architecture: str, site: str, expected: list[bool]
) -> None:
    assert holds(judge(l0s, architecture, site)) == expected


def test_unknown_l0s_are_counted_and_said_where_they_could_overturn_the_claim() -> None:
    verdict = judge({5: [50, math.nan, math.nan]})
    assert verdict.checks[0].measured.endswith("the L0 of 2 more is not known")
    assert "if all of them are above the elbow, 1 of 3 (33%)" in verdict.remarks[0]
    assert "none of known L0" in judge({5: [math.nan]}).remarks[0]


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
