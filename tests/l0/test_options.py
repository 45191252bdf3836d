"""What a search may be told, and what not."""

from __future__ import annotations

from typing import Any

import pytest

from sparse_but_wrong.l0.options import FindOptions


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(
            ({"sae_config": {name: 3}}, f"sae_config: '{name}' is set by the search")
            for name in ("d_sae", "d_in", "k", "l0_coefficient", "l1_warm_up_steps")
        ),
        *(
            ({name: 0}, rf"FindOptions\.{name} must be at least 1, got 0")
            for name in ("n_coarse", "count_up_to", "threads", "reinit_dead_every")
        ),
        ({"sae_config": {"foo": 1}}, "sae_config: .*'foo'; they have .*decoder_init_norm"),
        ({"sae_config": {"jumprelu_bandwidth": 1.0}}, "batchtopk SAEs have no field"),
        ({"sae_config": {"normalize_activations": "layer_norm"}}, "sae_config: .*layer_norm"),
        ({"fine_factors": (0.5, 2.0)}, r"1\.0 among them"),
        ({"architecture": "temporal"}, "'temporal' SAEs cannot be set; use one of batchtopk"),
    ],
)
def test_options_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FindOptions(**given)


def test_what_the_saes_have_is_taken() -> None:
    FindOptions(architecture="jumprelu", sae_config={"jumprelu_bandwidth": 1.0})
    FindOptions(sae_config={"normalize_activations": "none", "decoder_init_norm": 0.2}, threads=2)
