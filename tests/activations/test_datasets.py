"""Activations in Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Array2D, Array3D, Dataset, DatasetDict, Features, LargeList, List, Value

from sparse_but_wrong.activations.stored import (
    is_activations,
    open_activations,
    without_tokens,
)

CONTEXT, D_IN = 5, 3
X = torch.arange(7.0 * CONTEXT * D_IN).view(7, CONTEXT, D_IN)
FLAT = X.flatten(0, 1)
HOOK = "blocks.0.hook_resid_pre"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def as_sae_lens_writes(x: torch.Tensor, dtype: str = "float32", ids: str = "int32") -> Dataset:
    features = Features(
        {
            HOOK: Array2D(shape=(CONTEXT, D_IN), dtype=dtype),
            "token_ids": List(Value(ids), length=CONTEXT),
        }
    )
    token_ids = torch.arange(x[:, :, 0].numel()).view(len(x), CONTEXT) % 4
    return Dataset.from_dict({HOOK: x, "token_ids": token_ids.tolist()}, features=features)


def saved(folder: Path, feature: Any, rows: Any) -> Path:
    Dataset.from_dict({"x": rows}, features=Features({"x": feature})).save_to_disk(folder)
    return folder


@pytest.mark.parametrize(
    ("dtype", "ids"), [("float16", "int32"), ("float32", "int64"), ("float64", "int32")]
)
def test_contexts_as_sae_lens_writes_them(tmp_path: Path, dtype: str, ids: str) -> None:
    # Several Arrow tables one after the other, as several shards give.
    x = X.to(getattr(torch, dtype))
    halves = [as_sae_lens_writes(half, dtype, ids) for half in x.split(4)]
    datasets.concatenate_datasets(halves).save_to_disk(tmp_path / "data", num_shards=2)
    assert is_activations(tmp_path / "data")
    flat, token_ids = x.flatten(0, 1), torch.cat([torch.arange(20), torch.arange(15)]) % 4
    for stored in (open_activations(tmp_path / "data"), open_activations(tmp_path / "data", HOOK)):
        assert (stored.n_samples, stored.d_in, stored.dtype) == (35, D_IN, x.dtype)
        for start, stop in ((0, 35), (0, 1), (3, 8), (4, 5), (5, 10), (18, 33), (34, 35)):
            assert torch.equal(stored.read(start, stop), flat[start:stop])
            found = stored.read_token_ids(start, stop)
            assert found is not None
            assert torch.equal(found, token_ids[start:stop])
    kept = torch.cat(list(stored.batches(9, keep=without_tokens([0, 3]))))
    assert torch.equal(kept, flat[(token_ids == 1) | (token_ids == 2)].float())


def test_in_the_order_in_which_the_dataset_was_shuffled(tmp_path: Path) -> None:
    shuffled = as_sae_lens_writes(X).select([6, 0, 3]).remove_columns("token_ids")
    shuffled.save_to_disk(tmp_path / "data")
    stored = open_activations(tmp_path / "data")
    assert torch.equal(stored.read(0, 15), X[[6, 0, 3]].flatten(0, 1))
    assert stored.read_token_ids(0, 15) is None


def test_a_token_id_beside_each_vector(tmp_path: Path) -> None:
    features = Features({"x": List(Value("float32")), "token_ids": Value("int64")})
    ids: list[int | None] = [*range(34), None]
    rows = {"x": FLAT.tolist(), "token_ids": ids}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path)
    stored = open_activations(tmp_path)
    found = stored.read_token_ids(7, 20)
    assert found is not None
    assert found.tolist() == list(range(7, 20))
    with pytest.raises(OSError, match="token ids are missing"):
        stored.read_token_ids(20, 35)


@pytest.mark.parametrize(
    ("feature", "rows"),
    [
        (List(Value("float32"), length=D_IN), FLAT),
        (List(Value("float32")), FLAT),
        (LargeList(Value("float32")), FLAT),
        (List(List(Value("float32"))), X),
        (Array2D((None, D_IN), "float32"), X),
    ],
)
def test_other_vectors_and_matrices(tmp_path: Path, feature: Any, rows: torch.Tensor) -> None:
    stored = open_activations(saved(tmp_path, feature, rows.numpy().tolist()))
    assert stored.n_samples == 35
    assert torch.equal(stored.read(2, 33), FLAT[2:33])


def test_uneven_rows_are_refused_when_they_are_read(tmp_path: Path) -> None:
    rows = [[[1.0, 2.0]] * 3, [[1.0, 2.0]] * 3, [[1.0, 2.0]] * 2]
    stored = open_activations(saved(tmp_path / "uneven", List(List(Value("float32"))), rows))
    assert stored.read(0, 6).tolist() == [[1.0, 2.0]] * 6
    for start in (5, 6):
        with pytest.raises(OSError, match=r"uneven, column 'x' .*3 × 2 numbers"):
            stored.read(start, 7)
    vectors = List(Value("float32"))
    holes = open_activations(saved(tmp_path / "holes", vectors, [[1.0, 2.0], [1.0, None]]))
    with pytest.raises(ValueError, match="nan at sample 1, dimension 1"):
        holes.read(0, 2)
    with pytest.raises(ValueError, match="first row is empty"):
        open_activations(saved(tmp_path / "first", vectors, [None, [1.0]]))


def test_the_column(tmp_path: Path) -> None:
    features = {
        "a": List(Value("float32")),
        "b": List(Value("float16")),
        "ids": List(Value("int64")),
        "cube": Array3D((1, 1, 2), "float32"),
    }
    row = {"a": [[1.0, 2.0]], "b": [[3.0]], "ids": [[4]], "cube": [[[[1.0, 2.0]]]]}
    data = Dataset.from_dict(row, features=Features(features))
    data.save_to_disk(tmp_path / "two")
    assert open_activations(tmp_path / "two", column="b").read(0, 1).tolist() == [[3.0]]
    with pytest.raises(ValueError, match=r"several columns .* a \("):
        open_activations(tmp_path / "two")
    for column in ("c", "ids", "cube"):
        with pytest.raises(ValueError, match=rf"no column '{column}' .* a \("):
            open_activations(tmp_path / "two", column=column)
    data.select_columns(["ids"]).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no column of .* ids \("):
        open_activations(tmp_path / "none")


def test_datasets_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    as_sae_lens_writes(X[:0]).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match="empty is no dataset"):
        open_activations(tmp_path / "empty")
    data = as_sae_lens_writes(X)
    DatasetDict({"test": data, "train": data}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"splits \(test, train\)"):
        open_activations(tmp_path / "splits")
    data.save_to_disk(tmp_path / "cut")
    (file,) = (tmp_path / "cut").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="cut is no dataset"):
        open_activations(tmp_path / "cut")


def test_a_dataset_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, str]] = []

    def load(name: str, config: None, *, split: str, streaming: bool) -> Dataset:
        assert (config, streaming) == (None, False)
        asked.append((name, split))
        if name in ("user/name", "user/empty"):
            return as_sae_lens_writes(X if name == "user/name" else X[:0])
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load)
    stored = open_activations("user/name")
    assert asked == [("user/name", "train")]
    assert torch.equal(stored.read(4, 6), FLAT[4:6])
    with pytest.raises(OSError, match=r"user/other.*ConnectionError: no network"):
        open_activations("user/other")
    with pytest.raises(ValueError, match="user/empty is empty"):
        open_activations("user/empty")
    Path("user").mkdir()
    with pytest.raises(FileNotFoundError, match="no file or folder user/name"):
        open_activations("user/name")
    assert len(asked) == 3
