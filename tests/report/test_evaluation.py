from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from sparse_but_wrong.metrics.evidence import Evidence, Measured
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
