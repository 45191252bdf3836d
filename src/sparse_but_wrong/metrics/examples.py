"""On which tokens latents are most active: the top examples of some latents of SAEs.

Axes: B samples of a batch, D d_in, H d_sae, L chosen latents, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparse_but_wrong.metrics.samples import encoder_inputs
from sparse_but_wrong.sae_lens_compat import inference_copy

if TYPE_CHECKING:
    import sae_lens

_CANDIDATES = 8
"""Times the examples wanted: some of the first are of one passage, or repeat its words."""

_SAME = 5
"""Two examples are the same where so many tokens up to the peak are."""


class Tokens(Protocol):
    """What is needed of stored activations."""

    n_samples: Any

    def starts(self, batch_size: int, n_samples: int | None = None) -> Iterable[int]: ...
    def read(self, start: int, stop: int) -> Tensor: ...
    def read_token_ids(self, start: int, stop: int) -> Tensor | None: ...
    def neighbours(self, sample: int, reach: int) -> tuple[int, int, bool]: ...


@dataclass(frozen=True)
class Example:
    """Neighbouring tokens, and how active a latent is on each."""

    sample: int
    """The stored sample on which it is most active."""
    at: int
    """Which of the tokens that is."""
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    one_sequence: bool
    """False where tokens may be of two, because it is not on record where one ends."""

    def __str__(self) -> str:
        tokens = [f"«{t}»" if i == self.at else t for i, t in enumerate(self.tokens)]
        return f"{self.activations[self.at]:.3g}: {''.join(tokens)}"


@dataclass(frozen=True)
class LatentExamples:
    """The top examples of a latent, the strongest first."""

    sae: str
    latent: int
    chosen: str
    """Why it is shown: "strongest", "densest" or "random"."""
    examples: tuple[Example, ...]


@torch.no_grad()
def choose_latents(
    sae: sae_lens.SAE[Any],
    densities: Float[np.ndarray, " H"],
    samples: Float[Tensor, "B D"],
    n: int,
    seed: int = 0,
) -> dict[int, str]:
    """Some latents to look at, and why: a third the strongest, a third the densest, others random.

    Args:
        densities: on what share of all samples each is active (`Evaluation.densities`).
        samples: on which the strongest add the longest vectors to a reconstruction.
        n: how many, if so many are ever active.
        seed: of the random ones.
    """
    sae = inference_copy(sae)
    peaks = torch.zeros(len(densities), device=sae.W_dec.device)
    for active in _active(sae, samples):
        peaks = torch.maximum(peaks, active.amax(0))
    strengths = (peaks * sae.W_dec.norm(dim=1)).float().cpu().numpy()
    alive = np.flatnonzero(densities > 0)
    chosen: dict[int, str] = {}
    for why, by in (("strongest", strengths), ("densest", densities)):
        order = [int(i) for i in alive[np.argsort(-by[alive], kind="stable")] if i not in chosen]
        chosen |= dict.fromkeys(order[: n // 3], why)
    others = [int(i) for i in np.random.default_rng(seed).permutation(alive) if i not in chosen]
    return chosen | dict.fromkeys(others[: n - len(chosen)], "random")


@torch.no_grad()
def top_examples(
    saes: Mapping[str, sae_lens.SAE[Any]],
    latents: Mapping[str, Mapping[int, str]],
    activations: Tokens,
    decode: Callable[[Sequence[int]], list[str]],
    *,
    n_examples: int = 5,
    reach: int = 12,
    n_samples: int | None = None,
    batch_size: int = 4096,
    keep: Callable[[Tensor, Tensor | None], Tensor] | None = None,
) -> list[LatentExamples]:
    """Where some latents are most active, with the tokens around, in one pass over the samples.

    Examples of a latent do not overlap, and no two end in the same five tokens. Latents that are
    negative when active count by their size.

    Args:
        saes: by name, used as in `evaluate`.
        latents: of each SAE which ones, and why they are chosen (`choose_latents`).
        activations: stored ones, with the ids of their tokens.
        decode: text of neighbouring tokens (`open_decoder`).
        n_examples: of each latent, if so many are there.
        reach: tokens before and behind the one where the latent is most active.
        n_samples, batch_size: which samples are looked at, as in `StoredActivations.batches`.
        keep: tells from samples and the ids of their tokens where examples may peak.
    Raises:
        ValueError: no ids of tokens are stored, or a latent that its SAE does not have.
    """
    tallies = {
        name: _Tally(name, sae, latents[name], n_examples, reach) for name, sae in saes.items()
    }
    for start in activations.starts(batch_size, n_samples):
        stop = min(start + batch_size, activations.n_samples)
        rows = activations.read(start, stop).float()
        kept = None if keep is None else keep(rows, activations.read_token_ids(start, stop))
        for tally in tallies.values():
            tally.add(rows, start, kept)
    return [
        LatentExamples(name, latent, why, tally.examples(i, activations, decode))
        for name, tally in tallies.items()
        for i, (latent, why) in enumerate(latents[name].items())
    ]


def _active(sae: sae_lens.SAE[Any], samples: Float[Tensor, "B D"]) -> Iterable[Tensor]:
    """How active all latents are, [chunk, H], chunk by chunk."""
    for chunk in encoder_inputs(samples, sae):
        yield sae.encode(chunk).to_dense().abs()


class _Tally:
    """The most active samples of the chosen latents of an SAE so far."""

    def __init__(
        self, name: str, sae: sae_lens.SAE[Any], latents: Iterable[int], n: int, reach: int
    ) -> None:
        self.sae, self.n, self.reach = inference_copy(sae), n, reach
        self.latents = torch.tensor(list(latents), dtype=torch.long)
        d_sae = len(self.sae.W_dec)
        if len(self.latents) and not 0 <= self.latents.min() <= self.latents.max() < d_sae:
            raise ValueError(
                f"{name} has the latents 0 to {d_sae - 1}, not all of {list(latents)}."
            )
        self.values = torch.zeros(0, len(self.latents))
        self.samples: Int64[Tensor, "K L"] = torch.zeros(0, len(self.latents), dtype=torch.long)

    def add(self, rows: Float[Tensor, "B D"], first: int, kept: Tensor | None) -> None:
        """Look at some neighbours, of which the first has this number."""
        at, width = 0, 2 * self.reach + 1
        for every in _active(self.sae, rows):
            active = every[:, self.latents.to(every.device)].float().nan_to_num().cpu()
            if kept is not None:
                active[~kept[at : at + len(active)]] = 0
            # The largest of each passage; neighbours of a peak are often active too.
            padded = torch.nn.functional.pad(active, (0, 0, 0, -len(active) % width))
            values, places = padded.view(-1, width, len(self.latents)).max(1)
            samples = first + at + places + width * torch.arange(len(places))[:, None]
            self.values = torch.cat([self.values, values])
            n_kept = min(len(self.values), _CANDIDATES * self.n)
            self.values, order = self.values.topk(n_kept, dim=0)
            self.samples = torch.cat([self.samples, samples]).gather(0, order)
            at += len(active)

    def examples(
        self, latent: int, stored: Tokens, decode: Callable[[Sequence[int]], list[str]]
    ) -> tuple[Example, ...]:
        """The examples of one of the chosen latents, by its place among them."""
        found: list[Example] = []
        taken: list[tuple[int, int]] = []
        endings: set[tuple[int, ...]] = set()
        number = int(self.latents[latent])
        peaks = (self.values[:, latent].tolist(), self.samples[:, latent].tolist())
        for value, sample in zip(*peaks, strict=True):
            if value <= 0 or len(found) == self.n:
                break
            start, stop, one_sequence = stored.neighbours(sample, self.reach)
            ids = stored.read_token_ids(start, stop)
            if ids is None:
                raise ValueError("No token_ids are stored beside these activations.")
            at, token_ids = sample - start, tuple(ids.tolist())
            ending = token_ids[max(0, at + 1 - _SAME) : at + 1]
            if ending in endings or any(start < b and a < stop for a, b in taken):
                continue
            taken.append((start, stop))
            endings.add(ending)
            (active,) = _active(self.sae, stored.read(start, stop).float())
            activations = tuple(active[:, number].float().tolist())
            texts = tuple(decode(token_ids))
            found.append(Example(sample, at, token_ids, texts, activations, one_sequence))
        return tuple(found)
