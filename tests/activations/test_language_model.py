"""Opening language models, and what is said of those that cannot be opened."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import LlamaForCausalLM

from sparse_but_wrong.activations import language_model
from sparse_but_wrong.activations.language_model import (
    LanguageModel,
    model_class_of,
    open_language_model,
)
from tests.activations.tiny_model import D_IN

HOOK = "model.layers.0"


def test_a_local_model(tiny_model: Path, model: LanguageModel) -> None:
    found = (model.d_in, model.model_class, model.dtype, model.n_ctx, model.n_vocab)
    assert found == (D_IN, "AutoModelForCausalLM", "float32", 64, 64)
    assert model.tokenizer.bos_token_id == 0
    assert not model.model.training
    assert open_language_model(str(tiny_model), "model.layers.1.mlp.up_proj").d_in == 64
    half = open_language_model(str(tiny_model), "model.norm", dtype="bfloat16")
    assert next(half.model.parameters()).dtype == torch.bfloat16


def test_the_hook_says_what_runs_the_model() -> None:
    for hook in ("blocks.8.hook_resid_post", "blocks.8.ln1.hook_normalized", "hook_embed"):
        assert model_class_of(hook) == "HookedTransformer"
    for hook in ("model.layers.14", "transformer.h.3.mlp"):
        assert model_class_of(hook) == "AutoModelForCausalLM"


def test_a_model_of_transformer_lens(
    tiny_model: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=16, d_head=4, n_heads=2, d_vocab=64, act_fn="relu"
    )
    asked: list[Any] = []

    def load(*arguments: Any) -> HookedTransformer:
        asked.append(arguments)
        return HookedTransformer(config, tokenizer=model.tokenizer)

    monkeypatch.setattr(language_model, "load_model", load)
    monkeypatch.setattr(language_model, "get_pretrained_model_config", lambda _: config)
    hook = "blocks.0.hook_resid_post"
    opened = open_language_model("gpt2", hook)
    found = (opened.d_in, opened.n_ctx, opened.n_vocab, opened.model_class)
    assert found == (8, 16, 64, "HookedTransformer")
    weights = {"dtype": torch.float32, "use_safetensors": True}
    assert asked == [("HookedTransformer", "gpt2", torch.device("cpu"), weights)]
    # Heads lie side by side; a row per pair of tokens is no activation.
    assert open_language_model("gpt2", "blocks.0.attn.hook_z").d_in == 8
    for name, wrong, message in (
        ("gpt2", "blocks.0.attn.hook_pattern", r"shape \[1, 2, 5, 5\] for 5 tokens"),
        ("gpt2", "blocks.1.hook_resid_post", r"Close to it: blocks\.0\.hook_resid_post"),
        ("nobody/nothing", hook, r"knows no model 'nobody/nothing'; give the path"),
        (str(tiny_model), hook, r"models of the Hub only, not .*model0; give the path"),
        ("microsoft/phi-2", hook, "would run code that comes with microsoft/phi-2"),
    ):
        with pytest.raises(ValueError, match=message):
            open_language_model(name, wrong)
    assert len(asked) == 4
    config.trust_remote_code = True
    with pytest.raises(ValueError, match="would run code that comes with gpt2"):
        open_language_model("gpt2", hook)
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("hook", "options", "message"),
    [
        ("model.layers.2", {}, r"hook point 'model.layers.2'\. Close to it: model\.layers\.\d"),
        ("model.layer.1.mlp", {}, r"Close to it: model\.layers\.1\.mlp"),
        ("zzz", {}, r"hook point 'zzz'\. Close to it: \w"),
        ("model", {}, r"the output at the hook point 'model' is no tensor"),
        (HOOK, {"device": "mars"}, "device 'mars'"),
        (HOOK, {"model_class": "GPT"}, "(?s)'GPT'.*AutoModelForCausalLM"),
        (HOOK, {"dtype": "int8"}, "(?s)'int8'.*bfloat16"),
    ],
)
def test_wrong_hooks_and_options(tiny_model: Path, hook: str, options: Any, message: str) -> None:
    # With types checked while the tests run, a value of another type is refused before.
    with pytest.raises((ValueError, TypeError), match=message):
        open_language_model(str(tiny_model), hook, **options)


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for hook in (HOOK, "blocks.0.hook_resid_post"):
        with pytest.raises(OSError, match=r"gpt2 cannot be loaded .*local folder or a \.gguf"):
            open_language_model("gpt2", hook)
    for name in ("/no/such/folder", "./nothing", str(tmp_path / "x.gguf")):
        with pytest.raises(FileNotFoundError, match="no file"):
            open_language_model(name, HOOK)


def pickle_weights(folder: Path) -> None:
    weights = LlamaForCausalLM.from_pretrained(str(folder)).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def bring_code(folder: Path) -> None:
    own = {"auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    change("config.json", own | {"model_type": "own"})(folder)
    (folder / "own.py").write_text("raise SystemExit('was run')")


def change(file: str, content: str | dict[str, Any]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        there = folder / file
        new = json.loads(there.read_text()) | content if isinstance(content, dict) else content
        there.write_text(new if isinstance(new, str) else json.dumps(new))

    return write


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (shutil.rmtree, "no file"),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "cannot be loaded"),
        (pickle_weights, r"only pickled weights .* safetensors"),
        (bring_code, "needs code that comes with it, which is not run"),
        (cut_short, "as a causal"),
        (change("config.json", '{"a":' * 100_000), "as a causal"),
        (change("config.json", "[1]"), "as a causal"),
        (change("tokenizer.json", '{"a":' * 100_000), "as a causal"),
        (change("tokenizer_config.json", "[3]"), "as a causal"),
        (change("config.json", {"num_hidden_layers": 10**9}), "as a causal"),
        (change("config.json", {"hidden_size": 10**12}), "as a causal"),
        (change("config.json", {"vocab_size": "many"}), "as a causal"),
        (change("config.json", {"num_attention_heads": 0}), "as a causal"),
        (change("config.json", {"model_type": [1]}), "as a causal"),
    ],
)
def test_folders_of_models_that_make_no_sense(
    tiny_model: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    spoil(folder)
    with pytest.raises((ValueError, OSError), match=rf"{message}") as refused:
        open_language_model(str(folder), HOOK)
    assert "model" in str(refused.value)
    assert len(str(refused.value)) < 700


def test_a_batch_that_cannot_be_run_is_said(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("out of\nmemory")

    monkeypatch.setattr(model.model, "run_with_cache", run)
    with pytest.raises(ValueError, match=r"2 sequences of 5 tokens .*out of memory\).*batch_size"):
        model.activations(torch.zeros(2, 5, dtype=torch.long))


def test_gguf_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    for name in (file, tmp_path):
        with pytest.raises(ValueError, match=r"package gguf.* install `sparse_but_wrong\[gguf\]`"):
            open_language_model(str(name), HOOK)
    with pytest.raises(ValueError, match=r"models of the Hub only, not .*tiny\.gguf"):
        open_language_model(str(file), "blocks.0.hook_resid_post")
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"several \.gguf files; .*: other\.gguf, tiny\.gguf"):
        open_language_model(str(tmp_path), HOOK)
