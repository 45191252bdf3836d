from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from sparse_but_wrong.metrics.evidence import Evidence, Measured
from sparse_but_wrong.metrics.examples import Example, LatentExamples
from sparse_but_wrong.report.evaluation import write_evaluation
from tests.metrics.evaluated import evaluated


def test_the_folder_holds_every_number(tmp_path: Path) -> None:
    found, out = evaluated(), tmp_path / "out"
    facts, failed = {"Command": "sbw diagnose"}, {"broken": "it is <broken>"}
    page = write_evaluation(found, out, "acts <b>", facts, ["25% (wide)"], failed)
    projections = pd.read_csv(out / "projections.csv")
    assert len(projections) == sum(evaluation.d_sae for evaluation in found)
    of_sae = projections.set_index("sae").loc["wide"]
    assert of_sae["s_n"].tolist() == pytest.approx(found["wide"].projections.tolist())
    errors = found["wide"].projection_standard_errors.tolist()
    assert of_sae["standard_error"].tolist() == pytest.approx(errors)
    latents = pd.read_csv(out / "latents.csv")
    assert latents["density"].tolist().count(0) == sum(e.dead_latents for e in found)
    saes = pd.read_csv(out / "saes.csv").set_index("sae")
    assert saes.index.tolist() == ["wide", "narrow"]
    assert saes["l0"].tolist() == [evaluation.l0 for evaluation in found]
    # n by its share of the 16 latents.
    assert saes.loc["wide", "s_0.25H"] == found["wide"].projections[4]
    assert saes.loc["wide", "s_0.25H_standard_error"] == errors[4]
    text = page.read_text(encoding="utf-8")
    for part in ("acts &lt;b&gt;", "it is &lt;broken&gt;", "25% (wide)", "data:image/png;base64,"):
        assert part in text
    assert (out / "plots/scores.pdf").stat().st_size > 10_000
    with pytest.raises(FileExistsError):
        write_evaluation(found, out, "acts", {}, [])


def test_examples_are_shown_as_text(tmp_path: Path) -> None:
    """By SAE, each token as strong as its latent is active, and nothing in it is HTML."""
    tokens = ("<b>", "\n", "", " x")
    shown = Example(7, 1, (1, 2, 3, 4), tokens, (1.0, 4.0, 2.0, 0.0), one_sequence=False)
    other = replace(shown, activations=(0.5, 2.0, 0.0, 0.0), one_sequence=True)
    found = [
        LatentExamples("wide", 5, "densest", (shown, other)),
        LatentExamples("narrow", 2, "random", ()),
    ]
    page = write_evaluation(evaluated(), tmp_path / "out", "acts", {}, [], examples=found)
    text = page.read_text(encoding="utf-8")
    assert "Latent 5: one of the densest, active on " in text
    assert re.search(r'<mark style="--strength: 0.25" title="1">&lt;b&gt;</mark>', text)
    assert re.search(r'<mark class="peak" style="--strength: 1.00" title="4">↵</mark>', text)
    assert '<mark class="peak" style="--strength: 0.50" title="2">↵</mark> x</span>' in text
    assert re.search(r'4 ≀</span>.*class="value">2</span>', text, re.DOTALL)
    assert re.search("<details open><summary>wide</summary>.*<details><summary>narrow<", text, re.S)
    assert "Not active on the samples" in text
    lines = [
        json.loads(line) for line in (tmp_path / "out/examples.jsonl").read_text().splitlines()
    ]
    assert [(line["sae"], line["latent"], line["at"]) for line in lines] == [("wide", 5, 1)] * 2
    assert lines[0]["tokens"] == list(tokens)


def test_evidence_has_its_table_its_details_and_what_to_compare_with(tmp_path: Path) -> None:
    table = pd.DataFrame({"auc": [0.75, 0.5]}, pd.Index(["wide", "narrow"], name="sae"))
    details = pd.DataFrame({"sae": ["wide"], "task": ["of one"], "auc": [0.75]})
    baselines = {"auc": {"all coordinates": Measured(0.875, 0.01)}}
    one = Evidence("probing", "Sparse <probing>", table, baselines, ("A note.",), details)
    page = write_evaluation(evaluated(), tmp_path / "out", "acts", {}, [], evidence=[one])
    assert pd.read_csv(tmp_path / "out/probing.csv").set_index("sae").equals(table)
    assert pd.read_csv(tmp_path / "out/probing_details.csv").equals(details)
    text = page.read_text(encoding="utf-8")
    for part in ("Sparse &lt;probing&gt;", "A note.", "0.875 ± 0.02", "auc, all coordinates"):
        assert part in text
