"""Activations in Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Array2D, Array3D, Dataset, DatasetDict, Features, LargeList, List, Value

from sparse_but_wrong.activations.in_order import contiguous_batches, without_tokens
from sparse_but_wrong.activations.stored import is_activations, open_activations

CONTEXT, D_IN = 5, 3
X = torch.arange(7.0 * CONTEXT * D_IN).view(7, CONTEXT, D_IN)
HOOK = "blocks.0.hook_resid_pre"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def as_sae_lens_writes(x: torch.Tensor, dtype: str = "float32") -> Dataset:
    features = Features(
        {
            HOOK: Array2D(shape=(CONTEXT, D_IN), dtype=dtype),
            "token_ids": List(Value("int32"), length=CONTEXT),
        }
    )
    ids = torch.zeros(len(x), CONTEXT, dtype=torch.int32)
    return Dataset.from_dict({HOOK: x, "token_ids": ids}, features=features)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_contexts_as_sae_lens_writes_them(tmp_path: Path, dtype: str) -> None:
    # Several Arrow tables one after the other, as several shards give.
    x = X.to(getattr(torch, dtype))
    both = datasets.concatenate_datasets([as_sae_lens_writes(half, dtype) for half in x.split(4)])
    both.save_to_disk(tmp_path / "data", num_shards=2)
    assert is_activations(tmp_path / "data")
    stored = open_activations(tmp_path / "data")
    assert (stored.n_samples, stored.d_in, stored.dtype) == (35, D_IN, x.dtype)
    assert torch.equal(stored.read(0, 35), x.flatten(0, 1))
    for start, stop in ((0, 1), (3, 8), (4, 5), (5, 10), (18, 33), (34, 35)):
        assert torch.equal(stored.read(start, stop), x.flatten(0, 1)[start:stop])
    named = open_activations(tmp_path / "data", column=HOOK)
    assert torch.equal(named.read(7, 9), x.flatten(0, 1)[7:9])


def test_in_the_order_in_which_the_data_set_was_shuffled(tmp_path: Path) -> None:
    as_sae_lens_writes(X).select([6, 0, 3]).save_to_disk(tmp_path / "data")
    stored = open_activations(tmp_path / "data")
    assert torch.equal(stored.read(0, 15), X[[6, 0, 3]].flatten(0, 1))


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_token_ids_as_sae_lens_writes_them(tmp_path: Path, kind: str) -> None:
    ids = torch.arange(35).view(7, CONTEXT) % 4
    data = as_sae_lens_writes(X).remove_columns("token_ids")
    column = Dataset.from_dict(
        {"token_ids": ids.tolist()}, Features({"token_ids": List(Value(kind), length=CONTEXT)})
    )
    datasets.concatenate_datasets([data, column], axis=1).save_to_disk(tmp_path / "data")
    stored = open_activations(tmp_path / "data")
    for start, stop in ((0, 35), (3, 8), (4, 5), (18, 33)):
        found = stored.read_token_ids(start, stop)
        assert found is not None
        assert torch.equal(found, ids.flatten()[start:stop])
    kept = torch.cat(list(contiguous_batches(stored, 9, keep=without_tokens([0, 3]))))
    assert torch.equal(kept, X.flatten(0, 1)[(ids.flatten() == 1) | (ids.flatten() == 2)])
    data.save_to_disk(tmp_path / "without")
    assert open_activations(tmp_path / "without").read_token_ids(0, 35) is None


def test_a_token_id_beside_each_vector(tmp_path: Path) -> None:
    features = Features({"x": List(Value("float32")), "token_ids": Value("int64")})
    rows = {"x": X.flatten(0, 1).tolist(), "token_ids": list(range(35))}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path)
    found = open_activations(tmp_path).read_token_ids(7, 20)
    assert found is not None
    assert found.tolist() == list(range(7, 20))


@pytest.mark.parametrize(
    "feature",
    [
        List(Value("float32"), length=D_IN),
        List(Value("float32")),
        LargeList(Value("float32")),
    ],
)
def test_vectors(tmp_path: Path, feature: Any) -> None:
    x = X.flatten(0, 1)
    Dataset.from_dict({"x": x.tolist()}, features=Features({"x": feature})).save_to_disk(tmp_path)
    stored = open_activations(tmp_path)
    assert torch.equal(stored.read(2, 33), x[2:33])


@pytest.mark.parametrize(
    "feature", [List(List(Value("float32"))), Array2D((None, D_IN), "float32")]
)
def test_matrices_whose_context_only_the_rows_tell(tmp_path: Path, feature: Any) -> None:
    data = Dataset.from_dict({"x": X.numpy()}, features=Features({"x": feature}))
    data.save_to_disk(tmp_path)
    stored = open_activations(tmp_path)
    assert stored.n_samples == 35
    assert torch.equal(stored.read(4, 16), X.flatten(0, 1)[4:16])


def test_uneven_rows_are_refused_when_they_are_read(tmp_path: Path) -> None:
    rows = [[[1.0, 2.0]] * 3, [[1.0, 2.0]] * 3, [[1.0, 2.0]] * 2]
    features = Features({"x": List(List(Value("float32")))})
    Dataset.from_dict({"x": rows}, features=features).save_to_disk(tmp_path / "uneven")
    stored = open_activations(tmp_path / "uneven")
    assert stored.read(0, 6).tolist() == [[1.0, 2.0]] * 6
    with pytest.raises(OSError, match=r"uneven, column 'x' .*not every row holds 3 × 2 numbers"):
        stored.read(5, 7)
    holes = [[1.0, 2.0], [1.0, None]]
    features = Features({"x": List(Value("float32"))})
    Dataset.from_dict({"x": holes}, features=features).save_to_disk(tmp_path / "holes")
    with pytest.raises(OSError, match="some numbers are missing"):
        open_activations(tmp_path / "holes").read(0, 2)
    features = Features({"x": List(Value("float32"))})
    Dataset.from_dict({"x": [None, [1.0]]}, features=features).save_to_disk(tmp_path / "first")
    with pytest.raises(ValueError, match="the first row is empty"):
        open_activations(tmp_path / "first")


def test_the_column(tmp_path: Path) -> None:
    features = Features(
        {
            "a": List(Value("float32")),
            "b": List(Value("float16")),
            "ids": List(Value("int64")),
            "cube": Array3D((1, 1, 2), "float32"),
        }
    )
    row = {"a": [[1.0, 2.0]], "b": [[3.0]], "ids": [[4]], "cube": [[[[1.0, 2.0]]]]}
    data = Dataset.from_dict(row, features=features)
    data.save_to_disk(tmp_path / "two")
    assert open_activations(tmp_path / "two", column="b").read(0, 1).tolist() == [[3.0]]
    with pytest.raises(ValueError, match=r"several columns .* a \(list.*Say which holds"):
        open_activations(tmp_path / "two")
    with pytest.raises(ValueError, match=r"no column 'c'; its columns: a \(list"):
        open_activations(tmp_path / "two", column="c")
    for column in ("ids", "cube"):
        with pytest.raises(ValueError, match=f"column '{column}' of .* holds no floating-point"):
            open_activations(tmp_path / "two", column=column)
    data.select_columns(["ids"]).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has no column of .*; its columns: ids \(list"):
        open_activations(tmp_path / "none")


def test_data_sets_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    as_sae_lens_writes(X[:0]).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"the data set .*empty is empty"):
        open_activations(tmp_path / "empty")
    data = as_sae_lens_writes(X)
    DatasetDict({"test": data, "train": data}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"in splits \(test, train\); .* example .*splits/test"):
        open_activations(tmp_path / "splits")
    data.save_to_disk(tmp_path / "cut")
    (file,) = (tmp_path / "cut").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="cut is damaged or not finished"):
        open_activations(tmp_path / "cut")


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, str]] = []

    def load(name: str, split: str) -> Dataset:
        asked.append((name, split))
        if name in ("user/name", "user/empty"):
            return as_sae_lens_writes(X if name == "user/name" else X[:0])
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load)
    stored = open_activations("user/name")
    assert asked == [("user/name", "train")]
    assert torch.equal(stored.read(4, 6), X.flatten(0, 1)[4:6])
    with pytest.raises(OSError, match=r"no file or folder user/other.*ConnectionError: no network"):
        open_activations("user/other")
    with pytest.raises(ValueError, match="the data set user/empty is empty"):
        open_activations("user/empty")
    Path("user").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no file or folder user/name"):
        open_activations("user/name")
    assert len(asked) == 3
