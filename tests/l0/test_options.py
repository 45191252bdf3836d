"""What a search may be told, and what not."""

from __future__ import annotations

from typing import Any

import pytest

from sparse_but_wrong.l0.options import FindOptions


@pytest.mark.parametrize("name", ["d_sae", "d_in", "k", "l0_coefficient", "l1_warm_up_steps"])
def test_what_the_search_sets_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"sae_config: '{name}' is set by the search; leave it"):
        FindOptions(sae_config={name: 3})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"foo": 1}, "batchtopk SAEs have no field 'foo'; they have .*decoder_init_norm"),
        ({"jumprelu_bandwidth": 1.0}, "batchtopk SAEs have no field 'jumprelu_bandwidth'"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations='layer_norm'"),
    ],
)
def test_what_the_saes_do_not_have_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"FindOptions.sae_config: .*{message}"):
        FindOptions(sae_config=config)


def test_what_the_saes_have_is_taken() -> None:
    FindOptions(architecture="jumprelu", sae_config={"jumprelu_bandwidth": 1.0})
    FindOptions(sae_config={"normalize_activations": "none", "decoder_init_norm": 0.2})


@pytest.mark.parametrize("name", ["n_coarse", "count_up_to", "threads"])
def test_numbers_that_cannot_be_worked_with(name: str) -> None:
    given: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=rf"FindOptions\.{name} must be at least 1, got 0"):
        FindOptions(**given)
