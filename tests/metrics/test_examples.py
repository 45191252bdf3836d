"""Top examples of latents, on activations of which every number is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_but_wrong.metrics.examples import choose_latents, top_examples
from tests.metrics.evaluated import make_sae


class Stored:
    """Activations in memory, in sequences of ten."""

    def __init__(self, activations: Tensor, token_ids: Tensor | None) -> None:
        self.activations, self.ids, self.n_samples = activations, token_ids, len(activations)

    def starts(self, batch_size: int, n_samples: int | None = None) -> range:
        del n_samples
        return range(0, self.n_samples, batch_size)

    def read(self, start: int, stop: int) -> Tensor:
        return self.activations[start:stop]

    def read_token_ids(self, start: int, stop: int) -> Tensor | None:
        return None if self.ids is None else self.ids[start:stop]

    def neighbours(self, sample: int, reach: int) -> tuple[int, int, bool]:
        first = sample - sample % 10
        return max(first, sample - reach), min(first + 10, sample + reach + 1), True


def decode(ids: Sequence[int]) -> list[str]:
    return [f" w{i}" for i in ids]


@pytest.fixture
def stored() -> Stored:
    x = torch.zeros(200, 3)
    x[[17, 18, 95, 130, 199], 0] = torch.tensor([5.0, 6.0, 4.0, 3.0, 2.0])
    x[130, 1] = 1.0
    return Stored(x, torch.arange(200))


def test_the_most_active_samples_with_their_neighbours(stored: Stored) -> None:
    sae = make_sae(torch.eye(3))
    latents = {"sae": {0: "densest", 1: "random", 2: "random"}}
    for batch_size in (4096, 64):
        first, second, third = top_examples(
            {"sae": sae}, latents, stored, decode, n_examples=3, reach=3, batch_size=batch_size
        )
        # Sample 17 is in the passage of 18 already; the fourth is one too many.
        assert [example.sample for example in first.examples] == [18, 95, 130]
        example = first.examples[0]
        assert example.token_ids == (15, 16, 17, 18, 19)
        assert example.activations == (0, 0, 5, 6, 0)
        assert example.tokens[example.at] == " w18"
        assert str(example) == "6:  w15 w16 w17« w18» w19"
        assert [example.sample for example in second.examples] == [130]
        assert (third.sae, third.latent, third.chosen) == ("sae", 2, "random")
        assert third.examples == ()


def test_examples_differ_in_their_words_and_peak_only_where_they_may(stored: Stored) -> None:
    saes, latents = {"sae": make_sae(torch.eye(3))}, {"sae": {0: ""}}
    # The same five words before 95 as before 18.
    stored.ids = torch.arange(200)
    stored.ids[91:96] = stored.ids[14:19]

    def samples(**options: object) -> list[int]:
        (found,) = top_examples(saes, latents, stored, decode, reach=3, **options)  # pyright: ignore[reportArgumentType]
        return [example.sample for example in found.examples]

    stored.activations[94] = 0
    stored.ids[92:96] = stored.ids[15:19]
    # Passages reach three back, so four words decide.
    assert samples() == [18, 130, 199]
    assert samples(keep=lambda _, ids: ids != 130) == [18, 199]
    stored.ids = None
    with pytest.raises(ValueError, match="token_ids"):
        samples()


def test_a_latent_that_is_not_there_is_refused(stored: Stored) -> None:
    with pytest.raises(ValueError, match="latents 0 to 2"):
        top_examples({"sae": make_sae(torch.eye(3))}, {"sae": {3: ""}}, stored, decode)


def test_latents_to_look_at() -> None:
    sae = make_sae(torch.eye(8))
    samples = torch.arange(8.0) * torch.ones(5, 1)
    densities = np.array([0.9, 0.8, 0.1, 0.1, np.nan, 0.1, 0.1, 0.0])
    chosen = choose_latents(sae, densities, samples, 6, seed=0)
    assert len(chosen) == 6
    assert chosen[6] == chosen[5] == "strongest"
    assert chosen[0] == chosen[1] == "densest"
    assert {chosen[2], chosen[3]} == {"random"}
    assert choose_latents(sae, densities, samples, 1, seed=3) == choose_latents(
        sae, densities, samples, 1, seed=3
    )
    # No more than there are that are ever active.
    assert len(choose_latents(sae, densities, samples, 99)) == 6
