"""Sparse probes against what is planted, and against scikit-learn's by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import JumpReLUSAE, TopKTrainingSAE, TopKTrainingSAEConfig
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from sparse_but_wrong.metrics import probing
from sparse_but_wrong.metrics.probing import below_best, probe
from tests.metrics.evaluated import make_sae

D, N = 8, 60
Tasks = dict[str, tuple[Tensor, Tensor]]


def tasks(n_tasks: int = 4, signal: float = 4.0, seed: int = 0) -> Tasks:
    """Noise, and a label that coordinate 0 has where it is true; half of the texts are."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for i in range(n_tasks):
        x, labels = torch.randn(N, D, generator=generator), torch.arange(N) % 2 == 0
        x[:, 0] += signal * labels
        found[f"task_{i}"] = x, labels
    return found


def reading(*coordinates: int) -> JumpReLUSAE:
    """An SAE whose latents are coordinates; above a threshold of 0."""
    sae = make_sae(torch.eye(D)[list(coordinates)])
    sae.threshold.data.fill_(0.0)
    return sae


def test_a_planted_latent_is_found_and_noise_is_not_read() -> None:
    saes = {"planted": reading(3, 0, 5), "without": reading(2, 3, 4, 5)}
    found = probe(saes, tasks(8), ks=(1, 2))
    table = found.table
    assert table.index.tolist() == ["planted", "without"]
    assert table.loc["planted", "auc_1"] > 0.98
    assert table.loc["planted", "auc_2"] > 0.97
    # 16 test sets of 24 texts: a standard deviation of 0.12 each.
    assert table.loc["without", "auc_1"] == pytest.approx(0.5, abs=0.1)
    assert table.loc["planted", "below_best_1"] == 0
    difference = table.loc["planted", "auc_1"] - table.loc["without", "auc_1"]
    assert table.loc["without", "below_best_1"] == pytest.approx(difference)
    # One of the coordinates has the label too, and all of them do.
    baselines = found.baselines["auc_1"]
    assert baselines["1 coordinates of the activations"].value > 0.98
    assert baselines["all 8 coordinates"].value > 0.95
    assert found.baselines["auc_2"]["all 8 coordinates"] == baselines["all 8 coordinates"]


def test_the_table_sums_up_the_details() -> None:
    found = probe({"sae": reading(0, 1), "other": reading(1, 2)}, tasks(3, signal=1.0), ks=[1])
    details = found.details
    assert details is not None
    of_sae = details[details["sae"] == "sae"]["auc"]
    assert len(of_sae) == 3
    row = found.table.loc["sae"]
    assert row["auc_1"] == pytest.approx(of_sae.mean())
    assert row["auc_1_standard_error"] == pytest.approx(of_sae.std() / 3**0.5)
    assert min(details["auc_standard_error"].tolist()) > 0
    assert set(details["k"]) == {1, D}


def test_a_probe_is_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one penalty: fitted on the training texts, ranked on the test texts."""
    monkeypatch.setattr(probing, "_INVERSE_PENALTIES", (0.1,))
    name, (x, labels) = "task_0", tasks(1, signal=1.0)["task_0"]
    found = probe({"sae": reading(0, 1)}, {name: (x, labels)}, ks=(1, 2), n_splits=1)
    (split,) = probing._splits(name, x, labels, D, 1, 0)
    parts = (*split.fit, *split.validation, *split.test)
    assert sorted(parts) == list(range(N))
    assert [len(part) for part in split] == [28, 8, 24]
    assert labels[split.test].sum() == 12
    acts, y = torch.relu(x[:, :2]).double().numpy(), labels.numpy()
    train = acts[split.train]
    z = (acts - train.mean(0)) / train.std(0)
    model = LogisticRegression(C=0.1).fit(z[split.train], y[split.train])
    scores = model.predict_proba(z[split.test])[:, 1]
    row = found.table.loc["sae"]
    assert row["auc_2"] == pytest.approx(roc_auc_score(y[split.test], scores))
    # The one latent that differs more, by a regression of its own.
    one = LogisticRegression().fit(acts[split.train][:, :1], y[split.train])
    scores = one.decision_function(acts[split.test][:, :1])
    assert row["auc_1"] == pytest.approx(roc_auc_score(y[split.test], scores))
    # One task has no standard error, and one split neither.
    assert np.isnan(row["auc_1_standard_error"])


def test_the_penalty_is_chosen_on_validation_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def auc(
        columns: object, labels: object, c: float, train: np.ndarray, test: np.ndarray
    ) -> float:
        del columns, labels
        tried.append((c, len(train), len(test)))
        return 0.9 if c in (1e-2, 1e-1) else 0.5

    monkeypatch.setattr(probing, "_auc_of_fit", auc)
    probing._auc(*_columns(), probing._splits("t", *tasks(1)["task_0"], D, 1, 0)[0])
    assert [c for c, *_ in tried] == [1e-4, 1e-3, 1e-2, 1e-1, 1, 1e-2]
    assert tried[0][1:] == (28, 8)
    assert tried[-1][1:] == (36, 24)


def _columns() -> tuple[np.ndarray, np.ndarray]:
    x, labels = tasks(1)["task_0"]
    return x[:, :3].numpy(), labels.numpy()


def test_latents_are_ranked_in_units_of_their_mean_non_zero_activation() -> None:
    # Differences of 1, 10 and 0.4; of typical entries 1, 40 and 0.4. One latent is dead.
    acts = torch.tensor([[1.0, 30, 0.4, 0], [1, 50, 0.4, 0], [0, 40, 0, 0], [0, 40, 0, 0]])
    acts[0, 1] = 50
    acts[2:, 1] = 40
    labels, train = torch.tensor([True, True, False, False]), np.arange(4)
    assert set(probing._ranked(acts, labels, train, 2).tolist()) == {0, 2}
    assert probing._ranked(acts, labels, train, 9).tolist()[2:] == [1, 3]


def test_a_latent_that_falls_with_the_label_is_as_good() -> None:
    x, labels = tasks(1)["task_0"]
    found = probe({"sae": reading(0)}, {"up": (x, labels), "down": (x, ~labels)}, ks=[1])
    assert found.table.loc["sae", "auc_1"] > 0.95


def test_an_sae_has_its_result_whichever_others_and_tasks_there_are() -> None:
    both, one = tasks(2, signal=1.0), {"sae": reading(0, 1, 2)}
    alone = probe(one, both, ks=[2]).details
    beside = probe({"other": reading(3, 4), **one}, dict(reversed(both.items())), ks=[2]).details
    assert alone is not None
    assert beside is not None
    keys = ["sae", "task"]
    merged = alone.merge(beside, on=keys)
    assert len(merged) == len(alone)
    assert merged["auc_x"].tolist() == merged["auc_y"].tolist()
    assert not probe(one, both, ks=[2], seed=1).table.equals(probe(one, both, ks=[2]).table)


def test_the_difference_to_the_best_is_paired() -> None:
    # Tasks differ by far more than the SAEs do on each.
    aucs = pd.DataFrame({"a": [0.5, 0.48], "b": [0.7, 0.69], "c": [0.9, 0.87]}, ["good", "bad"])
    found = below_best(aucs)
    assert found.loc["good"].tolist() == [0, 0]
    assert found.loc["bad", "below_best"] == pytest.approx(0.02)
    assert found.loc["bad", "below_best_standard_error"] == pytest.approx(0.01 / 3**0.5)


def test_training_saes_and_diverged_ones() -> None:
    torch.manual_seed(0)
    topk = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D, d_sae=12, k=2))
    diverged = reading(0, 1)
    diverged.W_enc.data.fill_(torch.nan)
    table = probe({"topk": topk, "diverged": diverged}, tasks(2), ks=(1, 16)).table
    assert 0.5 < table.loc["topk", "auc_16"] <= 1
    assert table.loc["diverged"].isna().all()
    assert table.loc["topk", "below_best_1"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ks": (1, 0)}, "k of at least 1"),
        ({"n_splits": 0}, "0 splits"),
        ({"saes": {}}, "0 SAEs"),
        ({"tasks": {}}, "0 tasks"),
        ({"tasks": {"few": (torch.randn(30, D), torch.arange(30) < 9)}}, "few .* 9 true"),
        ({"tasks": {"short": (torch.randn(30, D), torch.arange(28) < 14)}}, r"short .*\[28\]"),
        ({"tasks": {"wide": (torch.randn(30, D + 1), torch.arange(30) < 15)}}, r"\[30, 9\]"),
        ({"tasks": {"nan": (torch.full((30, D), torch.nan), torch.arange(30) < 15)}}, "finite"),
    ],
)
def test_bad_input(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"saes": {"sae": reading(0)}, "tasks": tasks(1), **changes}
    with pytest.raises(ValueError, match=message):
        probe(**arguments)  # pyright: ignore[reportArgumentType]


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"sparse_but_wrong\[probing\]"):
        probe({"sae": reading(0)}, tasks(1))
