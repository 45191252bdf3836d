"""SAEs of Gemma Scope: a params.npz in a folder such as layer_20/width_16k/average_l0_71.

With x of shape [batch, d_in], what each computes is what `load_sae` of its published name gives,
by sae_lens' `gemma_2_sae_huggingface_loader`, which reads from the Hub alone:

    p = x·W_enc + b_enc
    latents = relu(p) where p > threshold, else 0
    reconstruction = latents·W_dec + b_dec
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.saes.archive import check_zip
from sparse_but_wrong.saes.build import PLAIN, build_sae, check_tensors
from sparse_but_wrong.untrusted import one_line

if TYPE_CHECKING:
    import sae_lens
    from torch import Tensor

WEIGHTS = "params.npz"

_LAYOUT = {**PLAIN, "threshold": ("d_sae",)}
_NEAR = 4
"""How many of the folders that a file lies in may be part of its published name."""


def read_gemma_scope(file: Path) -> sae_lens.SAE[Any]:
    """The SAE in a file of Gemma Scope, as a sae_lens JumpReLU SAE; in float32, on the CPU.

    The file names no model, hook point or kind: they are told from the folders that it lies in, as
    far as these have kept their published names.

    Raises:
        ValueError: a transcoder, or a damaged or odd file. Nothing in it is unpickled.
    """
    from sae_lens import JumpReLUSAEConfig

    folders = file.absolute().parts[:-1]
    if any("transcoder" in name and "gemma-scope" in name for name in folders) or any(
        "transcoder" in name for name in folders[-_NEAR:]
    ):
        raise ValueError(
            f"{file} lies in a folder of transcoders, whose decoder writes to other activations "
            "than its encoder reads; only autoencoders can be measured."
        )
    weights = _read(file)
    sizes = check_tensors(file, weights, _LAYOUT)
    if "embedding" in folders[-_NEAR:]:
        # These read embeddings before the model scales them; sae_lens scales the weights.
        scale = math.sqrt(sizes["d_in"])
        weights["W_enc"], weights["W_dec"] = weights["W_enc"] / scale, weights["W_dec"] * scale
    config = JumpReLUSAEConfig(sizes["d_in"], sizes["d_sae"], apply_b_dec_to_input=False)
    sae = build_sae(config, weights)
    sae.cfg.metadata.converted_from = "Gemma Scope"
    _note_origin(sae, folders)
    return sae


def _read(file: Path) -> dict[str, Tensor]:
    import numpy as np
    import torch

    check_zip(file)
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return {
            f"W_{name[2:]}" if name.startswith("w_") else name: torch.from_numpy(
                np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
            )
            for name, array in arrays.items()
        }
    except OSError:
        raise
    # There is no end to what numpy may stumble over in a damaged file.
    except Exception as error:
        raise ValueError(
            f"{file} is damaged, or holds something else than arrays of numbers "
            f"({type(error).__name__}: {one_line(error)}); copy it again from its source."
        ) from error


def _note_origin(sae: sae_lens.SAE[Any], folders: tuple[str, ...]) -> None:
    from sparse_but_wrong.sae_lens_compat import get_gemma_2_config_from_hf

    at = max((i for i, name in enumerate(folders) if "gemma-scope" in name), default=None)
    if at is None:
        return
    try:
        config = get_gemma_2_config_from_hf(folders[at], "/".join(folders[at + 1 :]), device="cpu")
    except ValueError:
        return
    sae.cfg.metadata.model_name = config["model_name"]
    sae.cfg.metadata.hook_name = config["hook_name"]
