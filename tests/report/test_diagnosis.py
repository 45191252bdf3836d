from __future__ import annotations

import pandas as pd
import pytest
import torch

from sparse_but_wrong.report.diagnosis import remarks, score_table, write_diagnosis
from tests.metrics.streamed import streamed


def test_the_folder_holds_every_number(tmp_path):
    scores = streamed()
    page = write_diagnosis(scores, tmp_path / "out", "acts <b>", {"Command": "sbw diagnose"})
    projections = pd.read_csv(tmp_path / "out/projections.csv")
    assert len(projections) == sum(score.d_sae for score in scores.values())
    of_sae = projections.set_index("sae").loc["wide", "s_n"].tolist()
    assert torch.allclose(torch.tensor(of_sae), scores["wide"].projections.values)
    latents = pd.read_csv(tmp_path / "out/latents.csv")
    assert latents["density"].tolist().count(0) == sum(s.dead_latents for s in scores.values())
    saes = pd.read_csv(tmp_path / "out/saes.csv")
    assert saes["sae"].tolist() == list(scores)
    assert saes["l0"].tolist() == [score.l0.value for score in scores.values()]
    text = page.read_text(encoding="utf-8")
    assert "acts &lt;b&gt;" in text
    assert "data:image/png;base64," in text
    assert (tmp_path / "out/plots/scores.pdf").stat().st_size > 10_000


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(FileExistsError):
        write_diagnosis(streamed(), tmp_path, "acts", {})
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_table_names_n_by_its_share_of_the_latents():
    scores = streamed()
    row = score_table(scores).set_index("sae").loc["wide"]
    assert row["s_0.25H"] == float(scores["wide"].projections.values[4])
    assert row["s_0.25H_standard_error"] == float(scores["wide"].projections.standard_errors[4])


def test_remarks_name_the_number_and_the_sae():
    said = " ".join(remarks(streamed()))
    # Of 16 latents of the wide one, 4 have a decoder row of their own and no encoder.
    assert "25% (wide)" in said
    assert "were 3 batches" in said
    assert "iverged" not in said
    assert "Diverged" in " ".join(remarks(streamed(broken=True)))
