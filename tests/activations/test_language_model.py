"""Opening language models, and what is said of those that cannot be opened."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import AutoTokenizer, LlamaForCausalLM

from sparse_but_wrong.activations import language_model
from sparse_but_wrong.activations.language_model import model_class_of, open_language_model
from tests.activations.tiny_model import D_IN


def test_a_local_model(tiny_model: Path) -> None:
    opened = open_language_model(str(tiny_model), "model.layers.0")
    assert (opened.d_in, opened.model_class, opened.dtype) == (
        D_IN,
        "AutoModelForCausalLM",
        "float32",
    )
    assert (opened.n_ctx, opened.n_vocab) == (64, 64)
    assert opened.tokenizer.bos_token_id == 0
    assert not opened.model.training
    assert open_language_model(str(tiny_model), "model.layers.1.mlp.up_proj").d_in == 64
    half = open_language_model(str(tiny_model), "model.norm", dtype="bfloat16")
    assert next(half.model.parameters()).dtype == torch.bfloat16


def test_the_hook_says_what_runs_the_model() -> None:
    assert model_class_of("blocks.8.hook_resid_post") == "HookedTransformer"
    assert model_class_of("blocks.8.ln1.hook_normalized") == "HookedTransformer"
    assert model_class_of("hook_embed") == "HookedTransformer"
    assert model_class_of("model.layers.14") == "AutoModelForCausalLM"
    assert model_class_of("transformer.h.3.mlp") == "AutoModelForCausalLM"


def test_a_model_of_transformer_lens(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model))
    config = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=16, d_head=4, n_heads=2, d_vocab=64, act_fn="relu"
    )
    asked: list[Any] = []

    def load(*arguments: Any) -> HookedTransformer:
        asked.append(arguments)
        return HookedTransformer(config, tokenizer=tokenizer)

    monkeypatch.setattr(language_model, "load_model", load)
    monkeypatch.setattr(language_model, "get_pretrained_model_config", lambda _: config)
    opened = open_language_model("gpt2", "blocks.0.hook_resid_post")
    assert (opened.d_in, opened.n_ctx, opened.n_vocab) == (8, 16, 64)
    assert opened.model_class == "HookedTransformer"
    weights = {"dtype": torch.float32, "use_safetensors": True}
    assert asked == [("HookedTransformer", "gpt2", torch.device("cpu"), weights)]
    # Heads lie side by side; a row per pair of tokens is no activation.
    assert open_language_model("gpt2", "blocks.0.attn.hook_z").d_in == 8
    with pytest.raises(ValueError, match=r"shape \[1, 2, 5, 5\] for 5 tokens"):
        open_language_model("gpt2", "blocks.0.attn.hook_pattern")
    with pytest.raises(ValueError, match=r"Close to it: blocks\.0\.hook_resid_post"):
        open_language_model("gpt2", "blocks.1.hook_resid_post")
    with pytest.raises(ValueError, match=r"knows no model 'nobody/nothing'; give the path"):
        open_language_model("nobody/nothing", "blocks.0.hook_resid_post")
    with pytest.raises(ValueError, match=r"models of the Hub only, not .*model0; give the path"):
        open_language_model(str(tiny_model), "blocks.0.hook_resid_post")
    loaded = len(asked)
    with pytest.raises(ValueError, match="would run code that comes with microsoft/phi-2"):
        open_language_model("microsoft/phi-2", "blocks.0.hook_resid_post")
    config.trust_remote_code = True
    with pytest.raises(ValueError, match="would run code that comes with gpt2"):
        open_language_model("gpt2", "blocks.0.hook_resid_post")
    assert len(asked) == loaded


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("model.layers.2", r"hook point 'model.layers.2'\. Close to it: model\.layers\.\d"),
        ("model.layer.1.mlp", r"Close to it: model\.layers\.1\.mlp"),
        ("zzz", r"hook point 'zzz'\. Close to it: \w"),
        ("model", r"the output at the hook point 'model' is no tensor"),
    ],
)
def test_a_wrong_hook(tiny_model: Path, hook: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_language_model(str(tiny_model), hook)


def test_wrong_options(tiny_model: Path) -> None:
    name, hook = str(tiny_model), "model.layers.0"
    with pytest.raises(ValueError, match="device 'mars'"):
        open_language_model(name, hook, device="mars")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda'"):
            open_language_model(name, hook, device="cuda")


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for hook in ("model.layers.0", "blocks.0.hook_resid_post"):
        with pytest.raises(OSError, match=r"gpt2 could not be loaded .*local folder or a \.gguf"):
            open_language_model("gpt2", hook)


def test_what_is_not_there(tmp_path: Path) -> None:
    for name in ("/no/such/folder", "./nothing", str(tmp_path / "x.gguf")):
        with pytest.raises(FileNotFoundError, match="no file"):
            open_language_model(name, "model.layers.0")


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = LlamaForCausalLM.from_pretrained(str(folder)).state_dict()
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="cannot be loaded"):
        open_language_model(str(folder), "model.layers.0")
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only pickled weights .* safetensors"):
        open_language_model(str(folder), "model.layers.0")


def test_damaged_models(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be loaded as a causal language model"):
        open_language_model(str(folder), "model.layers.0")
    (tmp_path / "empty").mkdir()
    with pytest.raises((OSError, ValueError), match="empty cannot be loaded"):
        open_language_model(str(tmp_path / "empty"), "model.layers.0")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", '{"a":' * 100_000),
        ("config.json", "[1]"),
        ("tokenizer.json", '{"a":' * 100_000),
        ("tokenizer_config.json", "[3]"),
        ("config.json", {"num_hidden_layers": 10**9}),
        ("config.json", {"hidden_size": 10**12}),
        ("config.json", {"vocab_size": "many"}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"model_type": [1]}),
    ],
)
def test_files_of_a_model_that_make_no_sense(
    tiny_model: Path, tmp_path: Path, file: str, content: Any
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / file).read_text()) | content)
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=r"model cannot be loaded as a causal") as refused:
        open_language_model(str(folder), "model.layers.0")
    assert len(str(refused.value)) < 600


def test_a_batch_that_cannot_be_run_is_said(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_language_model(str(tiny_model), "model.layers.0")

    def run(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("out of\nmemory")

    monkeypatch.setattr(opened.model, "run_with_cache", run)
    with pytest.raises(ValueError, match=r"2 sequences of 5 tokens .*out of memory\).*batch_size"):
        opened.activations(torch.zeros(2, 5, dtype=torch.long))


def test_code_of_a_model_is_not_run(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = (folder / "config.json").read_text()
    own = '"auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},\n  "model_type"'
    config = config.replace('"model_type"', own).replace('"llama"', '"own"')
    (folder / "config.json").write_text(config)
    (folder / "own.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ValueError, match="needs code that comes with it, which is not run"):
        open_language_model(str(folder), "model.layers.0")


def test_gguf_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    for name in (file, tmp_path):
        with pytest.raises(ValueError, match=r"package gguf.* install `sparse_but_wrong\[gguf\]`"):
            open_language_model(str(name), "model.layers.0")
    with pytest.raises(ValueError, match=r"models of the Hub only, not .*tiny\.gguf"):
        open_language_model(str(file), "blocks.0.hook_resid_post")
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"several \.gguf files; .*: other\.gguf, tiny\.gguf"):
        open_language_model(str(tmp_path), "model.layers.0")
