"""Agreement: how alike SAEs of different seeds are, and the L0 at which they are most so.

A true feature is found from any initial weights; what an SAE learns at too high an L0 depends on
them, and at too low an L0 it learns fewer. So agreement falls on either side, also where an SAE is
too narrow for all features, and curves of its decoder alone only fall.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from sparse_but_wrong.metrics.evidence import STANDARD_ERROR, Evidence, Measured

if TYPE_CHECKING:
    import pandas as pd
    import sae_lens

    from sparse_but_wrong.metrics.evaluation import Evaluation, Evaluations

SHARED = 0.7
"""Cosine from which on two decoder rows are one latent; among random rows of 64 dimensions and more
none reaches it."""

_WEIGHT = 4
"""Power of the cosine by which a pair counts. Mixed features are found again from another seed, but
less exactly."""

_SAME = 1.3
"""Factor between two L0s up to which SAEs can share latents for this purpose."""

_REACH = 2.0
"""Factor around an L0 within which a control counts."""

_SMOOTHED = 1.21
"""Factor between L0s that is a standard deviation of the Gaussian kernel over which agreement is
averaged, however dense the sweep is: where L0s are a quarter apart, neighbours count half."""

_TOLERANCE = 0.04
"""Share of the highest PW-MCC by which an L0 may fall short and still be as good. On the 8 grids of
the large worlds of benchmarks/l0 that it was chosen by, the interval holds 15 of the 16 L0s of the
best mean cosine and MCC; with 0.03 it holds 12, and with 0.05 as many but is half as wide again."""

_MATCHED_UP_TO = 8192
"""Latents up to which decoder rows are matched one to one; the time is their third power."""

_UNKNOWN = Measured(math.nan, math.nan)

FEWEST_L0S = 4
SMALLEST_SHARE = 0.2
"""Of the latents that fire; below it SAEs of different seeds do not find the same."""

MORE_THAN_ON_NOISE = 2.0
"""Factor by which shared latents must outnumber those on noise."""


def firing_rows(sae: sae_lens.SAE[Any], found: Evaluation) -> Float[Tensor, "_H D"]:
    """Decoder rows of the latents that fire, by an evaluation of the SAE."""
    rows = sae.W_dec.detach().float()
    return rows[torch.from_numpy(found.densities > 0).to(rows.device)]


@torch.no_grad()
def shared_latents(a: Float[Tensor, "_H1 D"], b: Float[Tensor, "_H2 D"]) -> float:
    """How many latents two SAEs share.

    Pairs of decoder rows that are each other's nearest, with a cosine of `SHARED` at least, each
    counted as the fourth power of it.

    Args:
        a, b: `firing_rows` of each.
    """
    if not (len(a) and len(b)):
        return 0.0
    cosines = (normalize(a, dim=1) @ normalize(b, dim=1).T).nan_to_num(-1)  # of diverged rows
    nearest = cosines.max(1)
    is_mutual = cosines.argmax(0)[nearest.indices] == torch.arange(len(a), device=a.device)
    cosines = nearest.values[is_mutual & (nearest.values >= SHARED)]
    return float(cosines.clamp(max=1).pow(_WEIGHT).sum())


def partners(l0: Sequence[float], groups: Sequence[str]) -> list[int | None]:
    """The SAE of another group with the nearest L0, for each; None where there is none so near."""
    logs = np.log(np.where(np.asarray(l0, float) > 0, l0, np.nan))
    off = np.abs(logs[:, None] - logs)
    names = np.asarray(groups)
    off[(names[:, None] == names) | ~(off <= math.log(_SAME))] = np.inf
    return [int(row.argmin()) if np.isfinite(row.min()) else None for row in off]


@torch.no_grad()
def pw_mcc(a: Float[Tensor, "H D"], b: Float[Tensor, "H D"]) -> Measured:
    """Mean |cosine| of decoder rows, each matched to one of the other; the error is over rows.

    Of more than 8,192 rows each goes with the nearest, which is no lower. Source: PW-MCC of
    arXiv:2505.20254.
    """
    from scipy.optimize import linear_sum_assignment

    cosines = (normalize(a, dim=1) @ normalize(b, dim=1).T).abs().nan_to_num(0)  # of diverged rows
    if len(a) <= _MATCHED_UP_TO:
        matched = cosines.cpu().numpy()[linear_sum_assignment(cosines.cpu(), maximize=True)]
    else:
        matched = torch.cat([cosines.amax(0), cosines.amax(1)]).cpu().numpy()
    return Measured(float(matched.mean()), float(matched.std() / math.sqrt(len(a))))


def between_partners(
    saes: Sequence[sae_lens.SAE[Any]], evaluations: Sequence[Evaluation], groups: Sequence[str]
) -> list[tuple[Measured, float]]:
    """PW-MCC and shared latents of each SAE and the one of another group whose L0 is nearest.

    NaN where none is near, and PW-MCC where they differ in width.
    """
    rows = [firing_rows(sae, found) for sae, found in zip(saes, evaluations, strict=True)]
    of_pair: dict[frozenset[int | None], tuple[Measured, float]] = {}
    agreed = []
    for i, other in enumerate(partners([found.l0 for found in evaluations], groups)):
        pair = frozenset((i, other))
        if other is None:
            of_pair[pair] = (_UNKNOWN, math.nan)
        elif pair not in of_pair:
            a, b = (saes[at].W_dec.detach().float() for at in (i, other))
            matched = pw_mcc(a, b) if a.shape == b.shape else _UNKNOWN
            of_pair[pair] = (matched, shared_latents(rows[i], rows[other]))
        agreed.append(of_pair[pair])
    return agreed


def agreement_evidence(
    saes: Mapping[str, sae_lens.SAE[Any]], evaluations: Evaluations, kinds: Mapping[str, str]
) -> Evidence:
    """What each SAE shares with the one of its kind whose L0 is nearest, NaN where none is near.

    Args:
        saes: by name.
        evaluations: of these SAEs.
        kinds: of each, for example its run: SAEs of one kind differ in L0 and in seed only.
    """
    import pandas as pd

    columns = [name + end for name in ("pw_mcc", "shared_latents") for end in ("", STANDARD_ERROR)]
    table = pd.DataFrame(math.nan, index=pd.Index(evaluations.names, name="sae"), columns=columns)
    random: dict[str, Measured] = {}
    for kind in dict.fromkeys(kinds[name] for name in evaluations.names):
        of_kind = [found for found in evaluations if kinds[found.name] == kind]
        names = [found.name for found in of_kind]
        agreed = between_partners([saes[name] for name in names], of_kind, names)
        for found, (matched, n_shared) in zip(of_kind, agreed, strict=True):
            n_fire = max(1, int((found.densities > 0).sum()))
            error = math.sqrt(n_shared * (1 - n_shared / n_fire))
            table.loc[found.name] = [*matched, n_shared, error]
            size = tuple(saes[found.name].W_dec.shape)
            what = f"random rows, {size[0]:,} of {size[1]:,} numbers"
            if math.isfinite(matched.value) and what not in random:
                generator = torch.Generator().manual_seed(0)
                random[what] = pw_mcc(*torch.randn(2, *size, generator=generator))
    notes = (
        f"With the SAE of the same run whose L0 is nearest, within a factor of {_SAME:g}. PW-MCC "
        "matches all decoder rows one to one; shared are rows of latents that fire, each the "
        f"other's nearest, with a cosine of {SHARED:g} or more, by its fourth power. Errors are "
        "over latents.",
    )
    return Evidence("agreement", "Agreement between seeds", table, {"pw_mcc": random}, notes)


@dataclass(frozen=True)
class Agreement:
    """Where SAEs of different seeds are most alike."""

    l0: float
    """The middle of `interval`, in log L0."""

    interval: tuple[float, float]
    """In which they are nearly as alike as where they are most."""

    pw_mcc: float
    """The highest, averaged with neighbouring L0s."""

    n_shared: float
    """Latents shared there, averaged likewise."""

    share: float
    """The same, of those that fire."""

    on_noise: float
    """Latents shared at about that L0 by SAEs trained on Gaussian noise of the same mean and
    covariance; NaN where none were."""

    at_end: str
    """``"lower"`` or ``"higher"`` where the sweep ends before they are less alike, else empty."""

    most_shared_at: float
    """The L0 at which they share most latents."""


def read_agreement(
    table: pd.DataFrame, d_sae: int, on_noise: pd.DataFrame | None = None
) -> Agreement | None:
    """The L0 at which SAEs are most alike; None where too few have a partner to tell.

    Args:
        table: of an evaluated sweep. Where it has `steps`, SAEs that were trained for less than
            most are left out: a budget has an optimum of its own.
        d_sae: latents of each SAE.
        on_noise: the table of SAEs that were trained on noise, if there are any.
    """
    columns = ["l0", "pw_mcc", "shared_latents", "dead_latents"]
    numbers = table[[*columns, *(["steps"] if "steps" in table else [])]].to_numpy(float)
    numbers = numbers[np.isfinite(numbers[:, :4]).all(1) & (numbers[:, 0] > 0)]
    if len(numbers) == 0:
        return None
    if "steps" in table:
        numbers = numbers[~(numbers[:, 4] < np.nanmax(numbers[:, 4], initial=0))]
    numbers = numbers[numbers[:, 0].argsort()]
    x, *measured = np.log(numbers[:, 0]), *numbers[:, 1:3].T, d_sae - numbers[:, 3]
    # SAEs of one L0 from several seeds are one point.
    point = np.concatenate([[0], np.cumsum(np.diff(x) > math.log(1.03))])
    if point[-1] + 1 < FEWEST_L0S:
        return None
    x, *measured = (np.bincount(point, values) / np.bincount(point) for values in (x, *measured))
    # With its neighbours: single pairs are noisy.
    weights = np.exp(-(((x[:, None] - x) / math.log(_SMOOTHED)) ** 2) / 2)
    alike, shared, fires = (weights @ values / weights.sum(1) for values in measured)
    top = int(alike.argmax())
    low, high = _nearly_as_good(x, alike)
    l0 = math.exp((low + high) / 2)
    return Agreement(
        l0=l0,
        interval=(math.exp(low), math.exp(high)),
        pw_mcc=float(alike[top]),
        n_shared=float(shared[top]),
        share=float(shared[top]) / max(1.0, float(fires[top])),
        on_noise=math.nan if on_noise is None else _shared_near(l0, on_noise),
        at_end={0: "lower", len(x) - 1: "higher"}.get(top, ""),
        most_shared_at=math.exp(x[int(shared.argmax())]),
    )


def _nearly_as_good(x: np.ndarray, alike: np.ndarray) -> tuple[float, float]:
    """The ends of log L0 around the highest agreement that fall short by at most `_TOLERANCE`."""
    fine = np.linspace(x[0], x[-1], 2_001)
    curve = np.interp(fine, x, alike)
    short, peak = curve < (1 - _TOLERANCE) * curve.max(), int(curve.argmax())
    low = fine[:peak][short[:peak]].max(initial=x[0])
    high = fine[peak:][short[peak:]].min(initial=x[-1])
    return low, high


def _shared_near(l0: float, table: pd.DataFrame) -> float:
    near = np.abs(np.log(table["l0"].to_numpy(float) / l0)) <= math.log(_REACH)
    return float(table["shared_latents"].to_numpy(float)[near].mean()) if near.any() else math.nan
