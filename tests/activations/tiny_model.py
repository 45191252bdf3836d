"""A language model small enough to be made on the spot, and text that it can read."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import WordLevelTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = tuple(f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u"))
BOS, EOS, PAD, UNKNOWN = range(4)
N_LAYERS, D_IN = 2, 32


def make_tiny_model(folder: Path) -> Path:
    """Save a randomly initialised Llama of two layers, 32 wide, with a tokenizer of 60 words.

    Its module `model.layers.0` gives the residual stream after the first layer.
    """
    tokenizer = Tokenizer(WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    tokenizer.train_from_iterator([" ".join(WORDS)], WordLevelTrainer(special_tokens=special))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    fast.save_pretrained(str(folder))
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=D_IN,
        intermediate_size=64,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        # As in trained models, so that the layers matter.
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder


@torch.no_grad()
def after_first_layer(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """What transformers gives for sequences of ids, [sequences, tokens, D_IN]."""
    hf_model = LlamaForCausalLM.from_pretrained(str(folder))
    return hf_model(tokens, output_hidden_states=True).hidden_states[1]  # 0: the embedding


def write_tasks(folder: Path, n_tasks: int = 2, n_texts: int = 60) -> Path:
    """Fill a folder with .csv files of texts, labelled by their last word or, every other, first.

    Texts have 3 to 8 words that the model knows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for i in range(n_tasks):
        texts = [draw.choices(WORDS, k=3 + n % 6) for n in range(n_texts)]
        rows = [f"{' '.join(text)},{text[i % 2 - 1] in WORDS[:30]}" for text in texts]
        (folder / f"task_{i}.csv").write_text("\n".join(["prompt,target", *rows]))
    return folder


def write_text(folder: Path, n_words: int = 200, n_documents: int = 5, seed: int = 0) -> Path:
    """Fill a folder with .txt files of words that the model knows; a word is a token."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for i in range(n_documents):
        (folder / f"{i}.txt").write_text(" ".join(draw.choices(WORDS, k=n_words)))
    return folder
