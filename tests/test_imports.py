"""What imports what: the rooms one way, the heavy libraries only where they are used."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import sparse_but_wrong

PACKAGE = Path(sparse_but_wrong.__file__).parent

# A room may import those listed, itself and what they may import, and nothing else of the package.
ALLOWED: dict[str, set[str]] = {
    "util": set(),
    "atomic": set(),
    "untrusted": set(),
    "threads": set(),
    "toy_models": {"util", "atomic", "threads", "untrusted"},
    "activations": {"toy_models", "untrusted"},
    "training": {"activations"},
    "diagnostics": {"util"},
    "nth_decoder_projection": {"diagnostics"},
    "registration": set(),
    "enchanced_batch_topk_sae": {"training"},
    "l0": {"training", "diagnostics"},
    "figures": {"util", "atomic", "diagnostics", "l0"},
    "runs": {"training", "atomic"},
    "report": {"runs", "figures"},
    "saes": {"training"},
    "experiments": {"report"},
    "l0_benchmark": {"l0", "experiments"},
    "cli": {"experiments", "l0_benchmark", "saes"},
}
# Published import paths that are façades of other rooms.
FACADES: dict[str, set[str]] = {
    "toy_models/train_toy_sae.py": {"training", "activations"},
    "toy_models/eval_sae.py": {"diagnostics"},
    "toy_models/plotting.py": {"figures"},
}


def reachable(room: str) -> set[str]:
    rooms, todo = {room}, [room]
    while todo:
        for other in ALLOWED[todo.pop()]:
            if other not in rooms:
                rooms.add(other)
                todo.append(other)
    return rooms


def imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "sparse_but_wrong" and len(parts) > 1:
                rooms.add(parts[1])
    return rooms


def test_rooms_import_one_way() -> None:
    files = [f for f in sorted(PACKAGE.rglob("*.py")) if f != PACKAGE / "__init__.py"]
    assert len(files) > 30
    wrong = []
    for file in files:
        place = file.relative_to(PACKAGE).as_posix()
        room = place.split("/")[0].removesuffix(".py")
        allowed = reachable(room) | FACADES.get(place, set())
        wrong += [f"{place} imports {other}" for other in imported_rooms(file) - allowed]
    assert wrong == []


def test_the_check_would_notice(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text("def f():\n    from sparse_but_wrong.cli.main import main\n    return main\n")
    assert imported_rooms(file) == {"cli"}
    assert "cli" not in reachable("training")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import sparse_but_wrong", ["torch", "sae_lens", "numpy", "matplotlib", "pandas"]),
        ("from sparse_but_wrong.cli.main import cli", ["torch", "sae_lens", "matplotlib"]),
        (
            "from sparse_but_wrong import make_saes, train_saes",
            ["sae_lens", "matplotlib"],
        ),
        ("from sparse_but_wrong import ToyModel, decoder_projection_curve", ["sae_lens"]),
        ("import sparse_but_wrong.toy_models.eval_sae", ["sae_lens", "matplotlib"]),
        ("from sparse_but_wrong import nth_decoder_projection", ["sae_lens", "matplotlib"]),
        ("from sparse_but_wrong import get_training_batch", ["sae_lens", "matplotlib"]),
    ],
)
def test_heavy_libraries_are_imported_only_where_used(statement: str, absent: list[str]) -> None:
    code = f"import sys\n{statement}\nprint([m for m in {absent!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_only_lens_and_named_places_touch_sae_lens_internals() -> None:
    """Submodules of sae_lens are internals; `training/lens.py` is where the engine knows them."""
    users = set()
    for file in sorted((PACKAGE / "training").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.startswith("sae_lens.")
            ):
                users.add(file.relative_to(PACKAGE).as_posix())
    assert users == {"training/lens.py"}


def test_every_public_name_can_be_imported() -> None:
    for name in sparse_but_wrong.__all__:
        assert getattr(sparse_but_wrong, name).__name__ == name
    assert dir(sparse_but_wrong) == sparse_but_wrong.__all__
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sparse_but_wrong.nonsense


PUBLISHED = [
    "EnchancedBatchTopKTrainingSAE",
    "EnhancedBatchTopKTrainingSAEConfig",
    "ToyModel",
    "generate_random_correlation_matrix",
    "get_training_batch",
    "nth_decoder_projection",
    "plot_sae_feat_cos_sims",
    "plot_sae_feat_cos_sims_seaborn",
    "train_toy_sae",
]


def output_of(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_published_names_are_at_the_top() -> None:
    assert set(PUBLISHED) <= set(sparse_but_wrong.__all__)
    for name in PUBLISHED:
        assert callable(getattr(sparse_but_wrong, name))


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
