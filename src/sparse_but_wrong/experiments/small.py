"""The four experiments on worlds of five features, the first correlated with all others.

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, the toy model of 5 features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sparse_but_wrong.experiments.worlds import BUDGET, N_SMALL, batchtopk, small_world
from sparse_but_wrong.runs.spec import ExperimentSpec
from sparse_but_wrong.training.controls import KTransition

TRUE_L0 = 2.0
"""Of every small world: five features of probability 0.4."""

EVALUATION_SAMPLES = 20_000
"""Of experiments with many SAEs. Mixing is read off the weights; on samples only L0 and error are
measured, and with 100,000 of them evaluation would take a third of the time of such a run."""

_SEEDS, _SIGNS = range(5), (0.4, -0.4)
_CORRELATIONS = tuple(round(tenth / 10, 1) for tenth in range(-5, 6))
_KS = (1.7, 1.75, 1.8, 1.85, 1.9, 1.95, 2.0)

# Without orthogonalisation the directions keep what random ones in 20 dimensions have in common,
# √(2/20π) = 0.18 on average: noise whose strength is no number of ours. A few steps leave about a
# quarter of it. In both the encoder can still tell features apart exactly. In 4 dimensions it
# cannot, and all cosines are ±0.25 at best; the claim is not judged there.
_NOISES: dict[str, dict[str, int]] = {
    "": {"ortho_num_steps": 0},
    "mild_": {"ortho_num_steps": 8},
    f"d_in_{N_SMALL - 1}_": {"d_in": N_SMALL - 1},
}
_NO_NOISE: dict[str, dict[str, int]] = {"": {}}


def _experiment(
    name: str,
    title: str,
    claim: str,
    cells: Iterable[tuple[float, int, float, bool]],
    *,
    noises: Mapping[str, Mapping[str, int]] = _NO_NOISE,
    sae_id: str = "{world}_k_{k:g}",
    world: str = "c_{c:+g}_seed_{seed}",
    evaluation_samples: int = EVALUATION_SAMPLES,
) -> ExperimentSpec:
    """BatchTopK SAEs that start at the true features of small worlds.

    Args:
        cells: correlation, number of the world, k, and whether k comes down from the true L0 over
            the first half of training. That tells what a low k does from what starting at it does:
            a low k from the first step may lead to another minimum.
        noises: options of the worlds, by a prefix of their names.
        sae_id, world: how SAEs and worlds are named.
    """
    worlds, saes, cells = {}, [], list(cells)
    for prefix, noise in noises.items():
        for c, seed, k, lowered in cells:
            if lowered and prefix:
                continue
            of_world = prefix + world.format(c=c, seed=seed)
            worlds[of_world] = small_world(c, **noise)
            sae = batchtopk(
                sae_id.format(world=of_world, k=k) + ("_lowered" if lowered else ""),
                k,
                N_SMALL,
                added=lowered or "d_in" in noise,
                world=of_world,
                factors={"correlation": c, "k": k, "seed": seed},
                init="true_features",
                control=KTransition(TRUE_L0, 0, BUDGET.n_steps // 2) if lowered else None,
            )
            saes.append(sae)
    return ExperimentSpec(
        name, title, claim, worlds, tuple(saes), BUDGET, evaluation_samples, analysis=name
    )


SMALL = _experiment(
    "small",
    "Five features, the first correlated with the others, at the true L0 and below it",
    "at k = 1.8 every latent takes on a component of the correlated feature, of the sign of the "
    "correlation; at k = 2, the true L0, none does",
    ((c, 0, k, False) for c in _SIGNS for k in (2.0, 1.8)),
    world="c_{c:+g}",
    evaluation_samples=100_000,
)

CORRELATION_STRENGTH = _experiment(
    "correlation-strength",
    "How much latents mix at k = 1.8, over the strength of the correlation",
    "mixing grows with the correlation and has its sign",
    ((c, seed, 1.8, False) for c in _CORRELATIONS for seed in _SEEDS),
    sae_id="{world}",
)

L0_STRENGTH = _experiment(
    "l0-strength",
    "How much latents mix, over how far k is below the true L0",
    "the further k is below the true L0, the more latents mix",
    (
        (c, seed, k, lowered)
        for c in _SIGNS
        for seed in _SEEDS
        for lowered in (False, True)
        for k in _KS
        if k < TRUE_L0 or not lowered
    ),
)

SUPERPOSITION = _experiment(
    "superposition",
    "The same five features with superposition noise",
    "with superposition noise as without, every latent takes on a component of the correlated "
    "feature at k = 1.8, of the sign of the correlation, and none does at k = 2, over and above "
    "what the true directions have in common",
    (
        (c, seed, k, lowered)
        for c in _SIGNS
        for seed in _SEEDS
        for k, lowered in ((2.0, False), (1.8, False), (1.8, True))
    ),
    noises=_NOISES,
)
