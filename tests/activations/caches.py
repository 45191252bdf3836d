"""Caches of activations to test with: written by hand, and read without the package's help."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparse_but_wrong.activations.manifest import MANIFEST, Cache, Shard, shard_name
from sparse_but_wrong.untrusted import sha256


class Written:
    """What lies in the folder of a cache, and what was said when it was made."""

    def __init__(self, folder: Path, said: Iterable[str] = ()) -> None:
        self.folder, self.said = folder, "\n".join(said)
        self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        self.shards: list[dict[str, Any]] = self.manifest["shards"]
        self.files = {name: (folder / name).read_bytes() for name in self._column("file")}
        tensors = [load_file(folder / name) for name in self.files]
        self.activations = torch.cat([shard["activations"] for shard in tensors])
        self.token_ids = torch.cat([shard["token_ids"] for shard in tensors])
        assert self.token_ids.dtype == torch.int32
        assert [len(shard["activations"]) for shard in tensors] == self._column("n_samples")
        assert list(map(len, self.files.values())) == self._column("bytes")

    def _column(self, name: str) -> list[Any]:
        return [shard[name] for shard in self.shards]


def write_cache(folder: Path, *shards: Tensor, **changes: Any) -> Path:
    """A cache of these shards, all of them of the token 0, with some settings changed."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for i, x in enumerate(shards):
        file, norms = folder / shard_name(i), x.double().norm(dim=1)
        token_ids = torch.zeros(len(x), dtype=torch.int32)
        save_file({"activations": x.contiguous(), "token_ids": token_ids}, file)
        shard = Shard(
            file=file.name,
            n_samples=len(x),
            first_sequence=i,
            n_sequences=1,
            bytes=file.stat().st_size,
            mean_norm=float(norms.mean()),
            max_norm=float(norms.max()),
            n_tokens=len(x),
            sha256=sha256(file),
        )
        listed.append(shard)
    settings: dict[str, Any] = {
        "model": "tiny",
        "model_class": "AutoModelForCausalLM",
        "model_dtype": "float32",
        "hook": "model.layers.0",
        "d_in": shards[0].shape[1],
        "dtype": "float32",
        "text": {"kind": "list"},
        "context_size": 16,
        "prepend_bos": True,
        "excluded_token_ids": (0, 1, 2),
        "skip_positions": 1,
        "batch_size": 3,
        "samples_per_shard": 130,
        "tokens": sum(map(len, shards)),
        "piece_size": 1000,
        "text_ended": False,
        "provenance": {},
        "resumed": (),
    }
    Cache(shards=tuple(listed), **settings | changes).write(folder)
    return folder
