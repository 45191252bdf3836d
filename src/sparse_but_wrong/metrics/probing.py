"""k-sparse probing: how well the labels of texts can be read from k latents of an SAE.

The protocol is that of Kantamneni et al. 2025, arXiv:2502.16681 (its "normal" setting): the
activation at the last token of a text; latents chosen on training texts by how far apart the
means of the classes are; a logistic regression on these, with the penalty chosen on validation
texts; the area under the ROC curve (AUC) on test texts. Two things are added: columns are
standardised, so that a few penalties do whatever the scale of an SAE, and every task is split
several times, so that the noise of splits shows.

Axes: N texts of a task, D d_in, H d_sae.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from sparse_but_wrong.metrics.evidence import STANDARD_ERROR, Evidence, Measured
from sparse_but_wrong.metrics.samples import at_least_float32, check_activations, encoder_inputs
from sparse_but_wrong.sae_lens_compat import inference_copy
from sparse_but_wrong.seeds import derive_seed

if TYPE_CHECKING:
    import pandas as pd
    import sae_lens

_TEST, _VALIDATION = 0.4, 0.2
"""Share of a task's texts to test on, and of the others to choose the penalty on."""

_INVERSE_PENALTIES = tuple(10.0**power for power in range(-4, 1))
_FEWEST = 10
"""Texts of a class."""

_SOME, _ALL = "coordinates of the activations", "all coordinates"


class _Split(NamedTuple):
    """Places of a task's texts."""

    fit: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def train(self) -> np.ndarray:
        """Places of all but the test texts."""
        return np.concatenate([self.fit, self.validation])


@torch.no_grad()
def probe(
    saes: Mapping[str, sae_lens.SAE[Any]],
    tasks: Mapping[str, tuple[Tensor, Tensor]],
    *,
    ks: Sequence[int] = (1, 16),
    n_splits: int = 2,
    seed: int = 0,
    progress: bool = False,
) -> Evidence:
    """Measure whether SAEs have latents from which labels can be read: test AUC of sparse probes.

    Training SAEs are probed as they are used, as in `evaluate`. A probe on one latent ranks texts
    by it. To compare with, there are probes on k coordinates of the activations, chosen as latents
    are, and on all coordinates. An SAE that diverged has NaN.

    Standard errors are over tasks, which are taken to be independent. SAEs are compared on the same
    texts and splits, so the difference of two (`below_best`) is known better than either.

    Args:
        saes: by name, of one d_in.
        tasks: by name, activations [texts, d_in] and labels [texts] (`cache_task_activations`).
        ks: how many latents a probe reads; all, of an SAE that has fewer.
        n_splits: splits of every task into training and test texts, over which AUC is averaged.
        seed: of the splits.
        progress: show a bar.
    Returns:
        A row per SAE with, for each k, `auc_k` and `below_best_k` and their standard errors; in
        `details` a row per SAE, or coordinates, task and k, with the standard error over splits.
    Raises:
        ValueError: no SAE or task, a task with fewer than 10 texts of a class or with activations
            of another width or that are not finite, k or n_splits below 1, or scikit-learn missing
            (it comes with `sparse_but_wrong[probing]`).
    Source: Kantamneni et al. 2025, arXiv:2502.16681.
    """
    import pandas as pd

    if importlib.util.find_spec("sklearn") is None:
        raise ValueError("probing needs scikit-learn; install `sparse_but_wrong[probing]`.")
    if not (saes and tasks and ks) or min(*ks, n_splits) < 1:
        raise ValueError(
            f"probing needs an SAE, a task, a split, and k of at least 1, but was given {len(saes)}"
            f" SAEs, {len(tasks)} tasks, {n_splits} splits and k of {list(ks)}."
        )
    d_in = next(iter(saes.values())).cfg.d_in
    splits = {
        task: _splits(task, x, labels, d_in, n_splits, seed) for task, (x, labels) in tasks.items()
    }
    rows = []

    def measure(name: str, task: str, acts: Float[Tensor, "N columns"], of: Sequence[int]) -> None:
        labels = tasks[task][1].bool()
        for split in splits[task]:
            ranked = _ranked(acts, labels, split.train, max(of))
            columns = acts[:, ranked].double().cpu().numpy()
            for k in of:
                auc = _auc(columns[:, :k], labels.cpu().numpy(), split)
                rows.append({"sae": name, "task": task, "k": k, "auc": auc})

    bar = tqdm(total=(len(saes) + 1) * len(tasks), desc="Probing", disable=not progress)
    with bar, warnings.catch_warnings():
        # A fit that has not converged after so many steps ranks texts nearly as it would then.
        warnings.filterwarnings("ignore", "lbfgs failed to converge")
        for task, (x, _) in tasks.items():
            measure(_SOME, task, at_least_float32(x), ks)
            measure(_ALL, task, at_least_float32(x), [d_in])
            bar.update()
        for name, sae in saes.items():
            as_used = inference_copy(sae)
            for task, (x, _) in tasks.items():
                measure(name, task, _latent_acts(as_used, x), ks)
                bar.update()
    by_task = pd.DataFrame(rows).groupby(["sae", "task", "k"], sort=False)["auc"]
    details = pd.DataFrame({"auc": by_task.mean(), f"auc{STANDARD_ERROR}": by_task.sem()})
    n_texts = sum(len(x) for x, _ in tasks.values())
    of = f"{len(tasks)} tasks of {n_texts:,} texts and over {n_splits} splits of each"
    return _evidence(details.reset_index(), list(saes), ks, d_in, of)


def below_best(aucs: pd.DataFrame, name: str = "below_best") -> pd.DataFrame:
    """How far SAEs are below the best of them on the same tasks.

    Args:
        aucs: a row per SAE and a column per task.
        name: of the column to return; that of its standard errors begins with it.
    Returns:
        A row per SAE: the mean difference over tasks, 0 for the SAE that has the highest mean, and
        its standard error (NaN for one task). The best is chosen by these numbers themselves, so
        those that are as good will be below it by about a standard error.
    """
    best = aucs.mean(axis=1).fillna(-1.0).idxmax()
    return _over_tasks(aucs.loc[best] - aucs, name)


def _over_tasks(values: pd.DataFrame, name: str) -> pd.DataFrame:
    mean, error = values.mean(axis=1, skipna=False), values.sem(axis=1, skipna=False)
    return mean.to_frame(name).assign(**{f"{name}{STANDARD_ERROR}": error})


def _evidence(
    details: pd.DataFrame, saes: list[str], ks: Sequence[int], d_in: int, of: str
) -> Evidence:
    import pandas as pd

    def by_task(k: int, names: list[str], column: str = "auc") -> pd.DataFrame:
        rows = details.loc[details["k"] == k]
        return rows.pivot(index="sae", columns="task", values=column).loc[names]

    columns, baselines, noise = [], {}, []
    for k in ks:
        aucs, errors = by_task(k, saes), by_task(k, saes, f"auc{STANDARD_ERROR}")
        columns += [_over_tasks(aucs, f"auc_{k}"), below_best(aucs, f"below_best_{k}")]
        baselines[f"auc_{k}"] = {
            f"{k} {_SOME}": Measured(*_over_tasks(by_task(k, [_SOME]), "auc").iloc[0]),
            f"all {d_in} coordinates": Measured(*_over_tasks(by_task(d_in, [_ALL]), "auc").iloc[0]),
        }
        of_splits = np.sqrt((errors.to_numpy() ** 2).mean())
        of_tasks = aucs.std(axis=1).mean()
        noise.append(f"{of_splits:.2g} at k = {k}, where tasks differ by {of_tasks:.2g}")
    return Evidence(
        name="probing",
        title="Sparse probing",
        table=pd.concat(columns, axis=1).rename_axis("sae"),
        baselines=baselines,
        notes=(
            f"auc_k is the test AUC of probes on k latents, mean over {of}; below_best_k is how "
            "far it is below that of the SAE with the highest. Standard errors are over tasks.",
            f"Standard error of one task's AUC over its splits: {'; '.join(noise)}.",
        ),
        details=details,
    )


def _splits(
    task: str, x: Tensor, labels: Tensor, d_in: int, n_splits: int, seed: int
) -> list[_Split]:
    """Splits of a task, which depend on nothing but its name, labels and the seed."""
    check_activations(x, d_in)
    classes = [(labels.bool() == value).nonzero().flatten().numpy(force=True) for value in (0, 1)]
    if labels.shape != x.shape[:1] or min(map(len, classes)) < _FEWEST:
        raise ValueError(
            f"the task {task} has {len(x)} activations, and labels of shape {list(labels.shape)} "
            f"with {len(classes[1])} true; it needs a label for each, and {_FEWEST} of each class."
        )
    found = []
    for i in range(n_splits):
        draw = np.random.default_rng(derive_seed(seed, "probing", task, str(i)))
        parts = []
        for of_class in classes:
            n_test = round(_TEST * len(of_class))
            n_validation = round(_VALIDATION * (len(of_class) - n_test))
            parts.append(np.split(draw.permutation(of_class), [n_test, n_test + n_validation]))
        test, validation, fit = (np.concatenate(part) for part in zip(*parts, strict=True))
        found.append(_Split(fit, validation, test))
    return found


def _latent_acts(sae: sae_lens.SAE[Any], x: Float[Tensor, "N D"]) -> Float[Tensor, "N H"]:
    # TopK SAEs can return sparse ones.
    acts = [sae.encode(batch).to_dense() for batch in encoder_inputs(x, sae)]
    return at_least_float32(torch.cat(acts))


def _ranked(
    acts: Float[Tensor, "N columns"], labels: Bool[Tensor, " N"], train: np.ndarray, k: int
) -> Tensor:
    """The k columns whose class means are furthest apart, in units of their mean non-zero entry."""
    of_train, is_true = acts[train], labels[train].to(acts.device)
    apart = (of_train[is_true].mean(0) - of_train[~is_true].mean(0)).abs()
    typical = of_train.abs().sum(0) / (of_train != 0).sum(0).clamp_min(1)
    apart /= typical.clamp_min(torch.finfo(acts.dtype).tiny)
    return apart.topk(min(k, len(apart))).indices


def _auc(columns: np.ndarray, labels: np.ndarray, split: _Split) -> float:
    """Test AUC of a probe on columns [N, k]; NaN if one is not finite."""
    from sklearn.metrics import roc_auc_score

    if not np.isfinite(columns).all():
        return float("nan")
    x, y = columns[split.train], labels[split.train]
    if columns.shape[1] == 1:
        # A logistic regression on one column rises or falls with it, by the sign of this.
        sign = np.sign(x[y].mean() - x[~y].mean())
        return float(roc_auc_score(labels[split.test], sign * columns[split.test, 0]))
    spread = x.std(0)
    columns = (columns - x.mean(0)) / np.where(spread > 0, spread, 1.0)

    def fitted(penalty: float, train: np.ndarray, test: np.ndarray) -> float:
        return _auc_of_fit(columns, labels, penalty, train, test)

    # The strongest of penalties that are equally good.
    best = max(_INVERSE_PENALTIES, key=lambda c: fitted(c, split.fit, split.validation))
    return fitted(best, split.train, split.test)


def _auc_of_fit(
    columns: np.ndarray, labels: np.ndarray, c: float, train: np.ndarray, test: np.ndarray
) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    model = LogisticRegression(C=c, max_iter=1000).fit(columns[train], labels[train])
    return float(roc_auc_score(labels[test], model.decision_function(columns[test])))
