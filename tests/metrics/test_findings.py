"""What is said of SAEs: of their L0, of what was measured, and of where activations come from."""

from __future__ import annotations

import math

import pytest
import sae_lens

from sparse_but_wrong.metrics.findings import (
    Origin,
    of_other_activations,
    origin_of,
    remarks,
    saturated,
    unsettled_thresholds,
)
from sparse_but_wrong.sae_lens_compat import inference_copy
from tests.metrics.evaluated import evaluated


def test_an_l0_far_from_its_k_is_said_with_both():
    # A BatchTopK SAE of k = 12 after 50, 100, 200 and many steps.
    said = unsettled_thresholds(
        [("a", 12, 140.0), ("b", 12, 62.0), ("c", 12, 14.0), ("d", 12, 12.3)]
    )
    assert said is not None
    assert "140 at k = 12 (a), 62 at k = 12 (b), 14 at k = 12 (c)." in said
    assert "(d)" not in said


def test_an_l0_near_its_k_or_unknown_is_not():
    assert unsettled_thresholds([("a", 3, l0) for l0 in (2.8, 3.0, 3.2, math.nan)]) is None
    assert unsettled_thresholds([]) is None


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (
            [("c", 100, 3.01), ("a", 1, 7.0), ("b", 10, 3.0), ("d", 1000, 3.0)],
            "coefficient 10 on: 3 there (b) and 3 at 1000 (d)",
        ),
        # Latents that are all silent are one L0.
        ([("a", 10, 0.0), ("b", 100, 0.0)], "coefficient 10 on"),
        ([], None),
        ([("a", 10, 3.0)], None),
        # Neighbours in a sweep, as at the truth of a toy world.
        ([("a", 0.75, 11.55), ("b", 1.0, 10.95), ("c", 1.3, 10.97), ("d", 1.5, 10.93)], None),
        ([("a", 1, 7.0), ("b", 10, 6.0), ("c", 100, 5.0)], None),
        # At the lower end, where a coefficient does nothing yet.
        ([("a", 0.001, 25.0), ("b", 0.01, 25.0), ("c", 1, 7.0)], None),
        # Seeds of one coefficient.
        ([("a", 1, 7.0), ("b", 1, 7.0)], None),
        ([("a", 10, 3.0), ("b", 100, math.nan)], None),
        ([("a", math.inf, 3.0), ("b", 10, 3.0)], None),
    ],
)
def test_one_l0_at_the_largest_coefficients_is_said(points, said):
    found = saturated(points)
    assert found is None if said is None else said in str(found)


def test_remarks_name_the_number_and_the_sae():
    said = " ".join(remarks(evaluated()))
    # Of 16 latents of the wide one, 4 have a decoder row of their own and no encoder.
    assert "25% (wide)" in said
    assert "3 batches" in said
    assert "iverged" not in said
    assert "Diverged" in " ".join(remarks(evaluated(broken=True)))


POST = "blocks.8.hook_resid_post"
SAME_HOOK = [
    (POST, POST),
    (POST, "model.layers.8"),
    (POST, "transformer.h.8"),
    (POST, "gpt_neox.layers.8"),
    (POST, "blocks.9.hook_resid_pre"),
    ("blocks.8.hook_resid_pre", "model.layers.7"),
    ("blocks.8.hook_mlp_out", "model.layers.8.mlp"),
    ("blocks.8.hook_attn_out", "model.layers.8.self_attn"),
    ("blocks.8.attn.hook_z", "gpt_neox.layers.8.attention"),
    ("blocks.8.ln2.hook_normalized", "model.layers.8.post_attention_layernorm"),
    ("blocks.8.hook_resid_mid", "model.layers.8.mlp"),
    ("resid_post_layer_8", "model.layers.8"),
    ("layers.8", "model.layers.8"),
    # What cannot be read says nothing.
    ("hook_embed", "model.layers.8"),
    ("my hook", "model.layers.8"),
    (None, "model.layers.8"),
    (POST, "activations"),
    (POST, None),
]
OTHER_HOOK = [
    (POST, "blocks.7.hook_resid_post"),
    (POST, "blocks.8.hook_resid_pre"),
    ("blocks.8.hook_resid_pre", "model.layers.8"),
    (POST, "model.layers.12"),
    ("blocks.8.hook_mlp_out", "model.layers.8"),
    ("blocks.8.hook_mlp_out", "model.layers.8.self_attn"),
    ("blocks.3.ln2.hook_normalized", "model.layers.8.post_attention_layernorm"),
]
SAME_MODEL = [
    ("gpt2-small", "gpt2"),
    ("gpt2", "openai-community/gpt2"),
    ("gemma-2-2b", "google/gemma-2-2b"),
    ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
    ("Llama-3.2-1B", "meta-llama/Llama-3.2-1b"),
    # A folder may be called anything.
    ("gemma-2-2b", "/models/g2"),
    ("gemma-2-2b", "./g2.gguf"),
    ("gemma-2-2b", "src"),
    ("gemma-2-2b", "g2.gguf"),
    (None, "gpt2"),
    ("gpt2", None),
]
OTHER_MODEL = [("gemma-2-2b", "gpt2")]


@pytest.mark.parametrize(
    ("what", "recorded", "here", "differ"),
    [
        (what, *pair, differ)
        for what, pairs, differ in (
            ("hook", SAME_HOOK, False),
            ("hook", OTHER_HOOK, True),
            ("model", SAME_MODEL, False),
            ("model", OTHER_MODEL, True),
        )
        for pair in pairs
    ],
)
def test_models_and_hooks_are_compared_under_all_their_names(what, recorded, here, differ):
    activations = {"model": None, "hook": None, what: here}
    origins = {"sae": Origin(**{what: recorded}), "same": Origin(**{what: here})}
    said = [s for s in of_other_activations(origins, **activations) if "not on record" not in s]
    assert len(said) == differ
    if differ:
        assert f"{here}: {recorded} (sae)." in said[0]


def jumprelu(coefficient, **others):
    return sae_lens.JumpReLUTrainingSAE(
        sae_lens.JumpReLUTrainingSAEConfig(d_in=4, d_sae=6, l0_coefficient=coefficient, **others)
    )


def test_an_sae_and_its_export_say_how_it_was_trained():
    assert origin_of(jumprelu(0.5)).coefficient == 0.5
    families = [origin_of(sae).family for sae in (jumprelu(0.5), jumprelu(2.0))]
    assert families[0] == families[1] != origin_of(jumprelu(2.0, jumprelu_bandwidth=2.0)).family
    batchtopk = sae_lens.BatchTopKTrainingSAE(
        sae_lens.BatchTopKTrainingSAEConfig(d_in=4, d_sae=6, k=2.5)
    )
    batchtopk.cfg.metadata.hook_name = POST
    for sae in (batchtopk, inference_copy(batchtopk)):
        origin = origin_of(sae)
        assert (origin.batchtopk_k, origin.coefficient, origin.hook) == (2.5, None, POST)
    topk = sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(d_in=4, d_sae=6, k=2))
    assert origin_of(topk).batchtopk_k is None
    standard = sae_lens.StandardTrainingSAE(
        sae_lens.StandardTrainingSAEConfig(d_in=4, d_sae=6, l1_coefficient=3)
    )
    standard.cfg.metadata.model_name, standard.cfg.metadata.hook_name = 3, ""
    origin = origin_of(standard)
    assert (origin.coefficient, origin.model, origin.hook) == (3, None, None)
