"""Whether the benchmarks work. What they measure is not asserted: timings are never tested."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import diagnostics
from benchmarks.__main__ import SIZES, main
from benchmarks.measure import ALONE, BESIDE, ENGINE, VMAP, Group, Measured, Timing, measure
from benchmarks.report import CPU_TARGETS, CUDA_TARGETS, Target, format_group, format_targets
from benchmarks.sweeps import SWEEPS, evenly, make_sweep
from benchmarks.worlds import WORLDS, BenchWorld
from sparse_but_wrong.experiments.registry import JUMPRELU
from sparse_but_wrong.runs.make import make_spec_saes

CPU = torch.device("cpu")
# Random activations; no SAE cares.
TINY = BenchWorld("tiny", 10, 12, 32, 16, CPU, fast=iter(lambda: torch.randn(16, 12), None))


def measured(*timings: Timing) -> Measured:
    group = Group("toy", "jumprelu", (12,))
    return Measured(group, "toy world", 120, list(timings), rate=1e3, shaped_rate=5e2)


@pytest.mark.parametrize("architecture", list(SWEEPS))
def test_every_architecture_is_trained_in_every_way(architecture: str) -> None:
    result = measure(Group("tiny", architecture, (1, 2)), TINY, 2, repeats=2, large=8)
    has_vmap = architecture in ("jumprelu", "batchtopk")
    for n_saes in (1, 2):
        ways = [t.way for t in result.timings if t.n_saes == n_saes]
        assert ways == [ALONE, BESIDE, *([VMAP] if has_vmap else []), ENGINE]
    for t in result.timings:
        assert len(t.seconds) == 2
        assert t.peak_bytes > 0
        for value in (
            *(t.seconds_per_sae_step, t.whole_run_seconds, t.batch_seconds),
            *(result.fraction_of_floor(t), result.speedup(t.n_saes, t.way)),
        ):
            assert math.isfinite(value)
            assert value > 0
    rows = format_group(result).splitlines()
    assert sum(row.startswith(ENGINE) and row.endswith("MiB") for row in rows) == 2


def test_the_command_prints_tables_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "speed.json"
    main(
        "--quick --worlds toy --architectures jumprelu --sizes 2,1 --steps 1 "
        f"--threads 1 --json {file}".split()
    )
    printed = capsys.readouterr()
    assert "jumprelu, toy world (F = 50, D = 100, H = 50, B = 1024)" in printed.out
    assert "not measured" in printed.out
    assert "Training" not in printed.err
    content = json.loads(file.read_text())
    assert content["machine"]["versions"]["torch"] == torch.__version__
    assert content["settings"]["sizes"] == [1, 2]
    (group,) = content["groups"]
    assert [t["way"] for t in group["timings"]] == [ALONE, BESIDE, VMAP, ENGINE] * 2
    assert len(content["targets"]) == len(CPU_TARGETS)


def test_the_command_names_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    without_gpu = [] if torch.cuda.is_available() else ["--device=cuda"]
    for wrong in ("--worlds=moon", "--architectures=vae", "--sizes=0", "--steps=x", *without_gpu):
        with pytest.raises(SystemExit):
            main([wrong])
        assert wrong.partition("=")[2] in capsys.readouterr().err


def test_the_cost_of_projections_is_printed_for_every_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {"--d-in": 8, "--d-sae": 64, "--batch": 32, "--batches": 2, "--repeats": 2}
    diagnostics.main([str(word) for pair in sizes.items() for word in pair])
    printed = capsys.readouterr().out
    for way in ("the product alone", "all n, from counts", "one n, from a sort"):
        assert f"{way:<22}" in printed
    assert "1.00 × the product" in printed


def test_the_sweeps_are_those_of_the_notebook_and_of_the_paper() -> None:
    notebook = [dict(spec.config) for spec in JUMPRELU.saes if not spec.added]
    assert [dict(spec.config) for spec in make_sweep("jumprelu", 12, 50)] == notebook
    specs = make_sweep("batchtopk", 125, 50)
    assert [spec.config["k"] for spec in specs] == [k for k in range(1, 26) for _ in range(5)]


@pytest.mark.parametrize("architecture", list(SWEEPS))
@pytest.mark.parametrize("n_saes", SIZES)
def test_a_sweep_has_as_many_unlike_saes_as_asked_for(architecture: str, n_saes: int) -> None:
    specs = make_sweep(architecture, n_saes, 32)
    assert len({spec.sae_id for spec in specs}) == n_saes
    assert len(make_spec_saes(evenly(specs, 3), 12, seed=0)) == min(3, n_saes)


def test_evenly_leans_to_no_side() -> None:
    assert evenly(range(9), 3) == [1, 4, 7]
    assert evenly(range(25), 1) == [12]
    assert evenly(range(3), 5) == [0, 1, 2]


def test_the_mid_size_world_is_sparse_and_its_directions_have_unit_norm() -> None:
    world = WORLDS["mid-size"](CPU)
    torch.manual_seed(0)
    batch = next(world.fast)
    assert batch.shape == (1024, 256)
    # 20 features of magnitude 1 ± 0.15 in random directions: mean square 20·1.0225, and 5 standard
    # errors of its mean over 1,024 samples, each with a deviation of about 0.3 of it, are 5 %.
    assert batch.square().sum(1).mean().item() == pytest.approx(20.45, rel=0.05)


def test_the_llm_size_world_comes_round_and_its_saes_differ_in_their_seeds() -> None:
    world = WORLDS["LLM-size"](CPU)
    batches = [next(world.fast) for _ in range(17)]
    assert batches[0].shape == (1024, 576)
    assert torch.equal(batches[16], batches[0])
    assert not torch.equal(batches[1], batches[0])
    specs = make_sweep("batchtopk", 8, world.d_sae)
    assert {spec.config["k"] for spec in specs} == {64}
    assert len({spec.sae_id for spec in specs}) == 8


def test_numbers_follow_from_the_medians() -> None:
    alone = Timing(ALONE, 12, 4, 10, estimates=12, seconds=[9.0, 2.0, 1.0], batch_seconds=0.01)
    engine = Timing(ENGINE, 12, 12, 10, estimates=1, seconds=[1.2, 1.2, 7.0])
    result = measured(alone, engine)
    assert alone.seconds_per_sae_step == pytest.approx(0.05)
    assert alone.whole_run_seconds == pytest.approx(0.05 * 12 * 14_649 + 12 * 1000 * 0.01)
    assert engine.seconds_per_sae_step == pytest.approx(0.01)
    assert result.fraction_of_floor(engine) == pytest.approx(120 / 1e3 / 0.01)
    assert result.speedup(12, ALONE) == pytest.approx((0.05 * 12 * 14_649 + 120) / (0.12 * 14_649))


def test_targets_say_whether_they_were_met() -> None:
    by_work = {target.work: target for target in CPU_TARGETS}
    besides, way_c = (by_work[f"12 JumpReLU SAEs of the notebook, × ({x})"] for x in "bc")
    timings = [Timing(way, 12, 12, 10, 1, [s]) for way, s in ((BESIDE, 5.5), (ENGINE, 1.0))]
    result = measured(*timings)
    assert besides.measured([result]) == pytest.approx(5.5)
    assert way_c.measured([result]) is None
    verdicts = [besides.verdict(value) for value in (5.5, 4.9, None)]
    assert verdicts == ["met", "missed", "not measured"]
    growth = Target("growth", "toy", "jumprelu", lambda _: 1.04, bound=1.05, at_most=True)
    assert [growth.verdict(value) for value in (1.04, 1.06)] == ["met", "missed"]
    table = format_targets(CPU_TARGETS, [result]).splitlines()
    assert len(table) == 1 + len(CPU_TARGETS)
    assert [target.bound for target in CUDA_TARGETS] == [60, 150, 2, 0.6, 2, 0.6]
