"""A language model of which the activations at one hook point are wanted, ready to run."""

from __future__ import annotations

import difflib
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.loading_from_pretrained import (
    NEED_REMOTE_CODE_MODELS,
    get_official_model_name,
    get_pretrained_model_config,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from sparse_but_wrong.activations.paths import user_path
from sparse_but_wrong.sae_lens_compat import (
    HookedProxyLM,
    extract_stop_at_layer_from_tlens_hook_name,
    load_model,
)
from sparse_but_wrong.untrusted import one_line

ModelClass = Literal["AutoModelForCausalLM", "HookedTransformer"]
ModelDtype = Literal["float32", "bfloat16", "float16"]

_LAYER = 100
"""Bytes that a layer has at least: those that name its first weight."""

_ELSEWHERE = "a local folder or a .gguf file works without a network"
_CONVERT = (
    "only pickled weights (.bin) are there, and those are not opened because a pickle can run any "
    "code; convert them to safetensors (save_pretrained writes them) where you trust them, and "
    "name that folder"
)


@dataclass(frozen=True)
class LanguageModel:
    """A model and the hook point at which it is read; made by `open_language_model`."""

    name: str
    """As it was asked for."""

    hook: str
    """A module path (`model.layers.14`) or a TransformerLens name (`blocks.8.hook_resid_post`)."""

    model: HookedRootModule
    model_class: ModelClass
    dtype: ModelDtype
    """Of the weights."""

    device: torch.device
    d_in: int
    """Numbers per activation at the hook point; several heads count as one activation."""

    n_ctx: int | None
    """The most tokens that the model takes at once, where it says so."""

    n_vocab: int | None
    """Token ids go up to here, where the model says so."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return self.model.tokenizer  # pyright: ignore[reportReturnType]

    def activations(
        self, tokens: Int64[Tensor, "sequences context"]
    ) -> Float32[Tensor, "sequences context d_in"]:
        """What the model gives at the hook point for ids of tokens, on its device.

        Raises:
            ValueError: it cannot be run on them.
        """
        return _run(self.model, self.hook, tokens.to(self.device)).flatten(2).float()


def open_language_model(
    name: str,
    hook: str,
    *,
    model_class: ModelClass | None = None,
    dtype: ModelDtype = "float32",
    device: str = "cpu",
) -> LanguageModel:
    """Load a language model, and find out how wide its activations at a hook point are.

    Code that comes with a model is never run, and pickled weights are not opened.

    Args:
        name: id on the Hugging Face Hub, a folder with a model, or a .gguf file (with the extra
            `sparse_but_wrong[gguf]`); for TransformerLens, one of the names that it knows.
        hook: the path of a module, whose output is read, or a hook point of TransformerLens.
        model_class: how the model is run; as `model_class_of` says if left out.
        dtype: of the weights.
        device: where the model runs.
    Raises:
        FileNotFoundError: a file or folder that is not there.
        OSError: the model cannot be had; the message says what was tried.
        ValueError: a hook point that the model does not have (the message names near ones) or
            that gives no activations [batch, pos, d_in], a model that cannot be used, a device
            that is not there, or an unknown class or dtype.
    """
    chosen = model_class_of(hook) if model_class is None else model_class
    for what, value, known in (
        ("class of models", chosen, get_args(ModelClass)),
        ("dtype of models", dtype, get_args(ModelDtype)),
    ):
        if value not in known:
            raise ValueError(f"there is no {what} {value!r}; there is: {', '.join(known)}.")
    where = _device(device)
    if chosen == "HookedTransformer":
        model = _hooked_transformer(name, dtype, where)
        hooks, config = list(model.hook_dict), getattr(model, "cfg", None)
        n_ctx, n_vocab = getattr(config, "n_ctx", None), getattr(config, "d_vocab", None)
        _check_hook(hook, hooks, name)
    else:
        hf_model, tokenizer = _causal_lm(name, dtype)
        _check_hook(hook, [path for path, _ in hf_model.named_modules() if path], name)
        config = hf_model.config.get_text_config()
        n_ctx = getattr(config, "max_position_embeddings", None)
        n_vocab = hf_model.get_input_embeddings().num_embeddings
        # Every sequence is run once, from its start to its end.
        config.use_cache = False
        model = HookedProxyLM(hf_model.to(where), tokenizer, hook_names=[hook])
    model.eval().requires_grad_(False)
    if getattr(model, "tokenizer", None) is None:
        raise ValueError(f"{name} has no tokenizer, so that no text can be read with it.")
    d_in = _width(model, hook, where)
    return LanguageModel(name, hook, model, chosen, dtype, where, d_in, n_ctx, n_vocab)


def model_class_of(hook: str) -> ModelClass:
    """What runs a model so that this hook point is there: TransformerLens' have names of their own.

    Raises nothing.
    """
    of_transformer_lens = hook.startswith(("blocks.", "hook_")) or ".hook_" in hook
    return "HookedTransformer" if of_transformer_lens else "AutoModelForCausalLM"


def _causal_lm(name: str, dtype: ModelDtype) -> tuple[Any, PreTrainedTokenizerBase]:
    path = user_path(name)
    gguf = _gguf_file(path)
    # Not left out: on a terminal, transformers would ask whether to run the model's own code.
    options: dict[str, Any] = {"trust_remote_code": False}
    if gguf is not None:
        _need_gguf(name)
        source, options = str(gguf.parent), options | {"gguf_file": gguf.name}
        weights = {}
    else:
        if not path.exists():
            _check_hub_id(name)
        elif _is_pickled_only(path):
            raise ValueError(f"{name} cannot be loaded: {_CONVERT}.")
        source = str(path) if path.exists() else name
        weights = {"use_safetensors": True}
    with _loading(name, is_local=path.exists()):
        # First what is small: a folder that lacks it is refused before its weights are read.
        if path.is_dir() and gguf is None:
            _check_layers(path, AutoConfig.from_pretrained(source, **options))
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, dtype), **weights, **options
        )
    return model, tokenizer


def _hooked_transformer(name: str, dtype: ModelDtype, device: torch.device) -> HookedRootModule:
    instead = "give the path of a module as the hook point, such as model.layers.14"
    if name.lower().endswith(".gguf") or user_path(name).exists():
        raise ValueError(f"TransformerLens loads models of the Hub only, not {name}; {instead}.")
    _check_hub_id(name)
    try:
        official = get_official_model_name(name)
    except ValueError as error:
        raise ValueError(f"TransformerLens knows no model {name!r}; {instead}.") from error
    kwargs = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    # It says on the standard output that it is done.
    with _loading(name, is_local=False), redirect_stdout(io.StringIO()):
        # It lets some models run code of their own without being asked to.
        if not official.startswith(NEED_REMOTE_CODE_MODELS):
            config = get_pretrained_model_config(official)
            if not config.trust_remote_code:
                return load_model("HookedTransformer", name, device, kwargs)
    raise ValueError(
        f"TransformerLens would run code that comes with {name}, which is not done; {instead}."
    )


@contextmanager
def _loading(name: str, is_local: bool) -> Iterator[None]:
    """Turn what goes wrong while a model is loaded into one clear error."""
    variable = "DISABLE_SAFETENSORS_CONVERSION"
    before = os.environ.get(variable)
    # Or transformers asks a bot to propose a conversion to the model's owner.
    os.environ[variable] = "1"
    try:
        with warnings.catch_warnings():
            # Libraries about their own interfaces; nothing that a user could mend.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except Exception as error:
        said = one_line(error)
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{name} needs code that comes with it, which is not run; choose a model whose "
                "architecture is part of transformers."
            ) from error
        if isinstance(error, OSError) and "safetensors" in said and not is_local:
            raise ValueError(f"{name} cannot be loaded: {_CONVERT} ({said}).") from error
        if isinstance(error, OSError) and not is_local:
            raise OSError(
                f"the model {name} could not be had from the Hugging Face Hub ({said}); check its "
                f"name and the network; {_ELSEWHERE}."
            ) from error
        if isinstance(error, OSError):
            raise OSError(f"{name} cannot be loaded ({said}).") from error
        # A damaged file, an architecture that is not known: each library has errors of its own.
        raise ValueError(
            f"{name} cannot be loaded as a causal language model ({type(error).__name__}: {said})."
        ) from error
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _gguf_file(path: Path) -> Path | None:
    """The .gguf file that a path means: itself, or the only one in a folder without a config."""
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}.")
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        there = ", ".join(file.name for file in files)
        raise ValueError(f"{path} holds several .gguf files; name one of them: {there}.")
    return files[0] if files else None


def _need_gguf(name: str) -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{name} needs the package gguf, which is not installed; install "
            "`sparse_but_wrong[gguf]`."
        ) from error


def _is_pickled_only(folder: Path) -> bool:
    has = {suffix: any(folder.glob(f"*{suffix}")) for suffix in (".safetensors", ".bin", ".pth")}
    return not has[".safetensors"] and (has[".bin"] or has[".pth"])


def _check_layers(folder: Path, config: Any) -> None:
    """Refuse more layers than the weights can have, which would be made one by one before that."""
    n_layers = getattr(config.get_text_config(), "num_hidden_layers", None) or 0
    n_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if n_bytes and n_layers > n_bytes // _LAYER:
        raise ValueError(f"its config.json has {n_layers} layers, and its weights {n_bytes} bytes")


def _check_hub_id(name: str) -> None:
    """Nothing else is looked for on the Hub: a mistyped path is told as what it is."""
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or "\\" in name:
        raise FileNotFoundError(f"there is no file or folder {name}.")


def _device(device: str) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"there is no device {device!r}; give cpu or cuda, say.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {device}: PyTorch finds no GPU here; leave it out to use the CPU."
        )
    return found


def _check_hook(hook: str, hooks: list[str], name: str) -> None:
    if hook in hooks:
        return
    near = difflib.get_close_matches(hook, hooks, n=5) or hooks[:: max(1, len(hooks) // 5)][:5]
    raise ValueError(f"{name} has no hook point {hook!r}; near it there is: {', '.join(near)}.")


@torch.no_grad()
def _run(model: HookedRootModule, hook: str, tokens: Tensor) -> Tensor:
    try:
        _, cache = model.run_with_cache(
            tokens,
            names_filter=[hook],
            stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(hook),
            prepend_bos=False,
        )
    except Exception as error:
        # Too little memory, or weights that do not fit together: each model has errors of its own.
        raise ValueError(
            f"the model cannot be run over {tokens.shape[0]} sequences of {tokens.shape[1]} tokens "
            f"({type(error).__name__}: {one_line(error)}); where that is for want of memory, lower "
            "the batch size."
        ) from error
    if hook not in cache:
        raise ValueError(
            f"the output at the hook point {hook!r} is no tensor; choose one that gives "
            "activations [batch, pos, d_in], such as a whole layer."
        )
    return cache[hook]


def _width(model: HookedRootModule, hook: str, device: torch.device) -> int:
    shapes = []
    # Two lengths, to tell what has a row per token from what only happens to be as long.
    for length in (3, 5):
        tokens = torch.zeros(1, length, dtype=torch.long, device=device)
        shapes.append(tuple(_run(model, hook, tokens).shape))
    first, second = shapes
    # Heads in a dimension of their own, [batch, pos, heads, d_head], lie side by side in sae_lens.
    if (
        len(first) not in (3, 4)
        or (first[:2], second[:2]) != ((1, 3), (1, 5))
        or first[2:] != second[2:]
    ):
        raise ValueError(
            f"the output at the hook point {hook!r} has the shape {list(second)} for 5 tokens, but "
            "[1, 5, d_in] is needed; choose another, such as a whole layer."
        )
    return int(torch.Size(first[2:]).numel())
