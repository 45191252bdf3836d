"""A language model, ready to give its activations at one hook point."""

from __future__ import annotations

import difflib
import importlib.util
import io
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import (
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
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

from sparse_but_wrong.sae_lens_compat import (
    HookedProxyLM,
    extract_stop_at_layer_from_tlens_hook_name,
    load_model,
)
from sparse_but_wrong.untrusted import environment, one_line, usable_device, user_path

ModelClass = Literal["AutoModelForCausalLM", "HookedTransformer"]
ModelDtype = Literal["float32", "bfloat16", "float16"]

_ANOTHER_HOOK = "choose one that gives activations [batch, pos, d_in], such as a whole layer"
_LAYER = 100
"""Bytes that a layer has at least: those that name its first weight."""

_CONVERT = (
    "only pickled weights (.bin) are there, and a pickle can run any code, so they are not opened; "
    "if you trust them, convert them to safetensors with save_pretrained and name that folder"
)

_SOURCES = (
    "check its name on the Hugging Face Hub and the network; a local folder or a .gguf file works "
    "without a network"
)


@dataclass(frozen=True)
class LanguageModel:
    """A model and the hook point at which it is read; made by `open_language_model`."""

    name: str
    hook: str
    model: HookedRootModule
    model_class: ModelClass
    dtype: ModelDtype
    """Type of the weights."""

    device: torch.device
    d_in: int
    """Numbers per activation at the hook point; several heads count as one activation."""

    n_ctx: int | None
    """The most tokens that the model takes at once, where it says so."""

    n_vocab: int | None
    """Token ids go up to here, where the model says so."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that belongs to it."""
        return self.model.tokenizer  # pyright: ignore[reportReturnType]

    def activations(
        self, tokens: Int64[Tensor, "sequences context"]
    ) -> Float32[Tensor, "sequences context d_in"]:
        """Its activations for ids of tokens, on its device; ValueError if it cannot be run."""
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
        model_class: how the model is run; by default as `model_class_of` says.
        dtype: of the weights.
        device: where the model runs.
    Raises:
        OSError: the model cannot be found or loaded.
        ValueError: a hook point that the model does not have (the message names near ones) or
            that gives no activations [batch, pos, d_in], a model that cannot be used, a device
            that is not there, or an unknown class or dtype.
    """
    chosen = model_class or model_class_of(hook)
    for value, kind in ((chosen, ModelClass), (dtype, ModelDtype)):
        if value not in get_args(kind):
            known = ", ".join(get_args(kind))
            raise ValueError(f"A model cannot be run as {value!r}. Available: {known}.")
    where = usable_device(device)
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
        raise ValueError(f"{name} has no tokenizer to read text with.")
    d_in = _width(model, hook, where)
    return LanguageModel(name, hook, model, chosen, dtype, where, d_in, n_ctx, n_vocab)


def model_class_of(hook: str) -> ModelClass:
    """What runs a model so that it has this hook point; TransformerLens' have their own names."""
    of_transformer_lens = hook.startswith(("blocks.", "hook_")) or ".hook_" in hook
    return "HookedTransformer" if of_transformer_lens else "AutoModelForCausalLM"


def open_tokenizer(name: str) -> Any:
    """The tokenizer of a model, without its weights; names and errors of `open_language_model`."""
    source, options, is_there = _source(name)
    if not is_there:
        with suppress(ValueError):  # a model that TransformerLens does not know
            source = get_official_model_name(source)
    with _loading(name, is_there):
        return AutoTokenizer.from_pretrained(source, **options)


def _source(name: str) -> tuple[str, dict[str, Any], bool]:
    """What transformers loads a model from, with which options, and whether it is a local path."""
    path = user_path(name)
    is_gguf, is_there = path.suffix.lower() == ".gguf", path.exists()
    if not is_there and (is_gguf or name.count("/") > 1 or name[:1] in "./~" or "\\" in name):
        raise FileNotFoundError(f"there is no file or folder {name}.")
    ggufs = [path] if is_gguf else []
    if path.is_dir() and not (path / "config.json").exists():
        ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) > 1:
        there = ", ".join(file.name for file in ggufs)
        raise ValueError(f"{path} holds several .gguf files; name one of them: {there}.")
    source = str(path) if is_there else name
    # Not left out: on a terminal, transformers would ask whether to run the model's own code.
    options: dict[str, Any] = {"trust_remote_code": False}
    for gguf in ggufs:
        if importlib.util.find_spec("gguf") is None:
            raise ValueError(f"{name} needs the package gguf; install `sparse_but_wrong[gguf]`.")
        source, options["gguf_file"] = str(gguf.parent), gguf.name
    return source, options, is_there


def _causal_lm(name: str, dtype: ModelDtype) -> tuple[Any, PreTrainedTokenizerBase]:
    source, options, is_there = _source(name)
    path, is_gguf = user_path(name), "gguf_file" in options
    weights = {} if is_gguf else {"use_safetensors": True}
    pickles = [*path.glob("*.bin"), *path.glob("*.pth")]
    if pickles and not is_gguf and not any(path.glob("*.safetensors")):
        raise ValueError(f"{name} cannot be loaded: {_CONVERT}.")
    with _loading(name, is_there):
        # First what is small: a folder that lacks it is refused before its weights are read.
        if path.is_dir() and not is_gguf:
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
    try:
        official = get_official_model_name(name)
    except ValueError as error:
        raise ValueError(f"TransformerLens knows no model {name!r}; {instead}.") from error
    kwargs = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    # TransformerLens prints that it is done, and lets some models run code of their own unasked.
    with _loading(name, False), redirect_stdout(io.StringIO()):
        if not official.startswith(NEED_REMOTE_CODE_MODELS):
            config = get_pretrained_model_config(official)
            if not config.trust_remote_code:
                return load_model("HookedTransformer", name, device, kwargs)
    raise ValueError(f"TransformerLens would run code that comes with {name}; {instead}.")


@contextmanager
def _loading(name: str, is_local: bool) -> Iterator[None]:
    """Turn what goes wrong while a model is loaded into one clear error."""
    try:
        # Without it transformers asks a bot to propose a conversion to the model's owner.
        # The bar of a .gguf file cannot be turned off by itself; in logs, no bar is wanted.
        hidden = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
        with environment(DISABLE_SAFETENSORS_CONVERSION="1"), hidden, warnings.catch_warnings():
            # Libraries about their own interfaces; nothing that a user could fix.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except Exception as error:  # each library has errors of its own
        said = one_line(error)
        if "trust_remote_code" in str(error):
            says = "needs code that comes with it, which is not run."
        elif not isinstance(error, OSError):
            kind = type(error).__name__
            says = f"cannot be loaded as a causal language model ({kind}: {said})."
        elif not is_local and "safetensors" in said:
            says = f"cannot be loaded: {_CONVERT} ({said})."
        else:
            hint = "" if is_local else f"; {_SOURCES}"
            raise OSError(f"the model {name} cannot be loaded ({said}){hint}.") from error
        raise ValueError(f"{name} {says}") from error


def _check_layers(folder: Path, config: Any) -> None:
    """Refuse more layers than the weights can have, which would be made one by one before that."""
    n_layers = getattr(config.get_text_config(), "num_hidden_layers", None) or 0
    n_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if n_bytes and n_layers > n_bytes // _LAYER:
        raise ValueError(f"its config.json has {n_layers} layers, and its weights {n_bytes} bytes")


def _check_hook(hook: str, hooks: list[str], name: str) -> None:
    if hook in hooks:
        return
    near = difflib.get_close_matches(hook, hooks, n=5) or hooks[:: max(1, len(hooks) // 5)][:5]
    raise ValueError(f"{name} has no hook point {hook!r}. Close to it: {', '.join(near)}.")


@torch.no_grad()
def _run(model: HookedRootModule, hook: str, tokens: Tensor) -> Tensor:
    try:
        _, cache = model.run_with_cache(
            tokens,
            names_filter=[hook],
            stop_at_layer=_stop_at_layer(model, hook),
            prepend_bos=False,
        )
    except Exception as error:  # each model has errors of its own
        raise ValueError(
            f"the model cannot be run over {tokens.shape[0]} sequences of {tokens.shape[1]} tokens "
            f"({type(error).__name__}: {one_line(error)}); if memory is short, lower batch_size."
        ) from error
    if hook not in cache:
        raise ValueError(f"the output at the hook point {hook!r} is no tensor; {_ANOTHER_HOOK}.")
    return cache[hook]


def _stop_at_layer(model: HookedRootModule, hook: str) -> int | None:
    """What makes a model end at a hook point, as far as it can: later layers are not needed."""
    # That of sae_lens stops where the hook is, whichever layer is named.
    is_module = isinstance(model, HookedProxyLM)
    return 0 if is_module else extract_stop_at_layer_from_tlens_hook_name(hook)


def _width(model: HookedRootModule, hook: str, device: torch.device) -> int:
    # Two lengths, to tell what has a row per token from what only happens to be as long.
    tokens = torch.zeros(1, 5, dtype=torch.long, device=device)
    first, second = (tuple(_run(model, hook, tokens[:, :n]).shape) for n in (3, 5))
    # Heads in a dimension of their own, [batch, pos, heads, d_head], lie side by side in sae_lens.
    if len(second) not in (3, 4) or first != (1, 3, *second[2:]) or second[:2] != (1, 5):
        raise ValueError(
            f"the output at the hook point {hook!r} has the shape {list(second)} for 5 tokens; "
            f"{_ANOTHER_HOOK}."
        )
    return math.prod(second[2:])
