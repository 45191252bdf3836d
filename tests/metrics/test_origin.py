from __future__ import annotations

from typing import Any

import pytest

from sparse_but_wrong.metrics.origin import Origin, of_other_activations, origin_of


@pytest.mark.parametrize(
    ("recorded", "hook"),
    [
        ("blocks.8.hook_resid_post", "blocks.8.hook_resid_post"),
        ("blocks.8.hook_resid_post", "model.layers.8"),
        ("blocks.8.hook_resid_post", "transformer.h.8"),
        ("blocks.8.hook_resid_post", "gpt_neox.layers.8"),
        ("blocks.8.hook_resid_post", "blocks.9.hook_resid_pre"),
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
        ("blocks.8.hook_resid_post", "activations"),
        ("blocks.8.hook_resid_post", None),
    ],
)
def test_one_place_under_two_names_is_one(recorded, hook):
    assert of_other_activations({"sae": Origin(hook=recorded)}, None, hook) == []


@pytest.mark.parametrize(
    ("recorded", "hook"),
    [
        ("blocks.8.hook_resid_post", "blocks.7.hook_resid_post"),
        ("blocks.8.hook_resid_post", "blocks.8.hook_resid_pre"),
        ("blocks.8.hook_resid_pre", "model.layers.8"),
        ("blocks.8.hook_resid_post", "model.layers.12"),
        ("blocks.8.hook_mlp_out", "model.layers.8"),
        ("blocks.8.hook_mlp_out", "model.layers.8.self_attn"),
        ("blocks.3.ln2.hook_normalized", "model.layers.8.post_attention_layernorm"),
    ],
)
def test_two_places_are_named(recorded, hook):
    (said,) = of_other_activations({"sae": Origin(hook=recorded)}, None, hook)
    assert f"{hook}: {recorded} (sae)" in said


@pytest.mark.parametrize(
    ("recorded", "model"),
    [
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
    ],
)
def test_one_model_under_two_names_is_one(recorded, model):
    assert of_other_activations({"sae": Origin(model=recorded)}, model, None) == []


def test_two_models_are_named():
    origins = {"a": Origin(model="gemma-2-2b"), "b": Origin(model="gpt2-small")}
    (said,) = of_other_activations(origins, "gpt2", None)
    assert "gpt2: gemma-2-2b (a)." in said


def test_an_sae_says_how_it_was_trained():
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )

    sizes: dict[str, Any] = {"d_in": 4, "d_sae": 6}

    def of(coefficient, **others):
        config = JumpReLUTrainingSAEConfig(**sizes, l0_coefficient=coefficient, **others)
        return origin_of(JumpReLUTrainingSAE(config))

    assert of(0.5).coefficient == 0.5
    assert of(0.5).family == of(2.0).family != of(2.0, jumprelu_bandwidth=2.0).family
    batchtopk = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=2.5))
    assert origin_of(batchtopk).batchtopk_k == 2.5
    assert origin_of(batchtopk).coefficient is None
    topk = TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, k=2))
    assert origin_of(topk).batchtopk_k is None
    standard = StandardTrainingSAE(StandardTrainingSAEConfig(**sizes, l1_coefficient=3))
    assert origin_of(standard).coefficient == 3
    standard.cfg.metadata.model_name, standard.cfg.metadata.hook_name = 3, ""
    assert (origin_of(standard).model, origin_of(standard).hook) == (None, None)


def test_an_export_still_says_so():
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    from sparse_but_wrong.sae_lens_compat import inference_copy

    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=4, d_sae=6, k=2.5))
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    origin = origin_of(inference_copy(sae))
    assert (origin.batchtopk_k, origin.hook) == (2.5, "blocks.1.hook_resid_post")
