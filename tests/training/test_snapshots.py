"""A snapshot is the SAE that a run of so many steps would have ended with, and changes nothing."""

from __future__ import annotations

import copy

import pytest

from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.state import Snapshot
from tests.training import oracle
from tests.training.oracle import NORMALISED, assert_identical


@pytest.mark.usefixtures("step")
def test_a_snapshot_is_where_a_shorter_run_ends() -> None:
    saes = [
        oracle.make_sae(0),
        oracle.make_sae(1, **NORMALISED),
        oracle.make_sae(2, l0_coefficient=1.0, **NORMALISED),
        oracle.left_to_sae_lens(3, **NORMALISED),
    ]
    start, batches = copy.deepcopy(saes), oracle.recorded_batches(60)
    taken: list[Snapshot] = []
    options = oracle.options_for(40, snapshot_steps=(1, 7, 33, 40))
    train_saes(saes, iter(batches), options, on_snapshot=taken.append)

    places = [(step, index) for step in options.snapshot_steps for index in range(4)]
    assert sorted((s.step, s.index) for s in taken) == places
    for step in options.snapshot_steps:
        shorter = copy.deepcopy(start)
        train_saes(shorter, iter(batches), oracle.options_for(step))
        for snapshot in (s for s in taken if s.step == step):
            assert_identical(snapshot.sae, shorter[snapshot.index])
            assert snapshot.sae.cfg.to_dict() == shorter[snapshot.index].cfg.to_dict()
            if step == 40:
                assert snapshot.sae is not saes[snapshot.index]
                assert_identical(saes[snapshot.index], shorter[snapshot.index])


def test_steps_without_a_taker_or_beyond_the_run_are_refused() -> None:
    sae = oracle.make_sae()
    for options, taker in (({"snapshot_steps": (3,)}, None), ({}, lambda _: None)):
        with pytest.raises(ValueError, match="on_snapshot"):
            train_saes([sae], iter([]), oracle.options_for(5, **options), on_snapshot=taker)
    with pytest.raises(ValueError, match=r"snapshot_steps holds 6, but the run has steps 1 to 5"):
        oracle.options_for(5, snapshot_steps=(3, 6))
