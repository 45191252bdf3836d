"""What imports what: the rooms one way, the heavy libraries only where they are used."""

from __future__ import annotations

import ast
import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import sparse_but_wrong

PACKAGE = Path(sparse_but_wrong.__file__).parent

# A module may import what stands before its room, and its own room; rooms of one line stand side
# by side, and only those named here may use another of theirs.
LAYERS = (
    {"atomic", "untrusted", "threads", "tensors", "seeds", "registration", "loggers", "shown"},
    {"sae_lens_compat"},
    {"worlds", "activations", "saes", "training", "metrics"},
    {"l0", "runs"},
    {"figures"},
    {"report"},
    {"experiments"},
    {"cluster"},
    {"api", "cli"},
)
BESIDE = {"activations": {"worlds"}, "saes": {"worlds"}, "training": {"worlds"}}
# Published import paths hold nothing of their own; nothing of ours imports them.
FACADES = {"toy_models", "nth_decoder_projection", "util", "enchanced_batch_topk_sae"}


def allowed(room: str) -> set[str]:
    if room in FACADES:
        return FACADES.union(*LAYERS)
    (at,) = (i for i, rooms in enumerate(LAYERS) if room in rooms)
    return {room}.union(*LAYERS[:at], BESIDE.get(room, ()))


def imported(file: Path) -> list[tuple[str, str]]:
    """Modules that a file imports, and what it takes from them."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.module, alias.name) for alias in node.names]
    return found


def imported_rooms(file: Path) -> set[str]:
    names = [f"{module}.{name}".split(".") for module, name in imported(file)]
    return {parts[1] for parts in names if parts[0] == "sparse_but_wrong"} - {""}


def test_ray_is_imported_in_one_room_only() -> None:
    users = {
        file.relative_to(PACKAGE).parts[0]
        for file in PACKAGE.rglob("*.py")
        if any(module.split(".")[0] == "ray" for module, _ in imported(file))
    }
    assert users == {"cluster"}


def sae_lens_internals(file: Path) -> list[tuple[str, str]]:
    return [(module, name) for module, name in imported(file) if module.startswith("sae_lens.")]


def test_rooms_import_one_way() -> None:
    files = [f for f in sorted(PACKAGE.rglob("*.py")) if f != PACKAGE / "__init__.py"]
    assert len(files) > 30
    wrong = []
    for file in files:
        place = file.relative_to(PACKAGE).as_posix()
        room = place.split("/")[0].removesuffix(".py")
        wrong += [f"{place} imports {o}" for o in imported_rooms(file) - allowed(room)]
    assert wrong == []


def test_the_check_would_notice(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text("def f():\n    from sparse_but_wrong.cli.main import main\n    return main\n")
    assert imported_rooms(file) == {"cli"}
    assert "cli" not in allowed("training")
    assert not FACADES & allowed("cli")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import sparse_but_wrong", ["torch", "sae_lens", "numpy", "matplotlib", "pandas"]),
        (
            "from click.testing import CliRunner; from sparse_but_wrong.cli.main import cli; "
            "assert 'cache-activations' in CliRunner().invoke(cli, ['--help']).output",
            ["torch", "sae_lens", "pandas", "matplotlib", "datasets", "ray"],
        ),
        (
            "from sparse_but_wrong import (ToyModel, evaluate, get_training_batch, make_saes, "
            "nth_decoder_projection, train_saes); import sparse_but_wrong.metrics.toy_sae, "
            "sparse_but_wrong.saes.load",
            ["sae_lens", "matplotlib"],
        ),
    ],
)
def test_heavy_libraries_are_imported_only_where_used(statement: str, absent: list[str]) -> None:
    code = f"import sys\n{statement}\nprint([m for m in {absent!r} if m in sys.modules])"
    assert output_of(code) == "[]"


def output_of(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_one_file_touches_sae_lens_internals_and_they_are_there() -> None:
    """A new release of sae_lens has to keep these, or `sae_lens_compat` has to follow."""
    from sparse_but_wrong import sae_lens_compat

    users = [file.name for file in PACKAGE.rglob("*.py") if sae_lens_internals(file)]
    assert users == ["sae_lens_compat.py"]
    touched = sae_lens_internals(Path(sae_lens_compat.__file__))
    touched += [(home, name) for name, home in sae_lens_compat._HOMES.items()]
    for module, name in touched:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
    trainer = importlib.import_module("sae_lens.training.sae_trainer").SAETrainer
    for name in ("step", "get_coefficients", "maybe_reset_sparsity", "dead_neurons"):
        assert hasattr(trainer, name), name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sae_lens_compat.nonsense


PUBLISHED = """EnchancedBatchTopKTrainingSAE EnhancedBatchTopKTrainingSAEConfig ToyModel
generate_random_correlation_matrix get_training_batch nth_decoder_projection plot_sae_feat_cos_sims
plot_sae_feat_cos_sims_seaborn train_toy_sae"""


def test_every_public_name_can_be_imported() -> None:
    for name in sparse_but_wrong.__all__:
        assert callable(getattr(sparse_but_wrong, name))
        assert getattr(sparse_but_wrong, name).__name__ == name
    assert dir(sparse_but_wrong) == sparse_but_wrong.__all__
    assert set(PUBLISHED.split()) <= set(sparse_but_wrong.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sparse_but_wrong.nonsense


FORGET = """
import sys
def forget():
    for name in [name for name in sys.modules if name.startswith("sparse_but_wrong")]:
        del sys.modules[name]
"""


def test_a_function_and_its_module_share_a_name_whatever_is_imported_first() -> None:
    code = """
import types
for first in (
    "from sparse_but_wrong import nth_decoder_projection",
    "import sparse_but_wrong.nth_decoder_projection",
    "import sparse_but_wrong.nth_decoder_projection as nth_decoder_projection",
    "from sparse_but_wrong.nth_decoder_projection import nth_decoder_projection",
):
    exec(first)
    import sparse_but_wrong
    import sparse_but_wrong.nth_decoder_projection
    import sparse_but_wrong.nth_decoder_projection as module
    from sparse_but_wrong import nth_decoder_projection as named
    from sparse_but_wrong.nth_decoder_projection import nth_decoder_projection as function

    assert isinstance(function, types.FunctionType), first
    assert named is sparse_but_wrong.nth_decoder_projection is function, first
    assert module.nth_decoder_projection is function, first
    assert sparse_but_wrong.nth_decoder_projection.nth_decoder_projection is function, first
    forget()
print("same")
"""
    assert output_of(FORGET + code) == "same"


def test_a_folder_of_our_architecture_loads_with_sae_lens_alone(tmp_path: Path) -> None:
    from sparse_but_wrong import EnchancedBatchTopKTrainingSAE, EnhancedBatchTopKTrainingSAEConfig

    config = EnhancedBatchTopKTrainingSAEConfig(d_in=3, d_sae=4, k=2, initial_k=3)
    EnchancedBatchTopKTrainingSAE(config).save_model(tmp_path)
    code = """
import importlib.util
import sparse_but_wrong

assert "sae_lens" not in sys.modules
assert importlib.util.find_spec("sae_lens") is not None  # looking is not importing
import sae_lens

def load():
    sae = sae_lens.TrainingSAE.load_from_disk(sys.argv[1])
    print(type(sae).__name__, sae.cfg.initial_k)

load()

# And sae_lens first.
forget()
del sae_lens.registry.SAE_TRAINING_CLASS_REGISTRY["enhanced_batchtopk"]
import sparse_but_wrong

load()
"""
    found = output_of(FORGET + code, str(tmp_path)).splitlines()
    assert found == ["EnchancedBatchTopKTrainingSAE 3"] * 2


def test_a_class_of_the_architecture_that_was_registered_before_stays() -> None:
    from sae_lens.registry import get_sae_training_class

    before = get_sae_training_class("enhanced_batchtopk")
    again = runpy.run_path(str(PACKAGE / "training" / "enhanced_batchtopk_sae.py"))
    assert again["EnchancedBatchTopKTrainingSAE"] is not before[0]
    assert get_sae_training_class("enhanced_batchtopk") == before
