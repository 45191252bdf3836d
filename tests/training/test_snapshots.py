"""A snapshot is the SAE that a run of so many steps would have ended with."""

from __future__ import annotations

import copy

import pytest
import torch
from sae_lens import JumpReLUTrainingSAE

from sparse_but_wrong.training.loop import Snapshot, train_saes
from tests.training import oracle

pytestmark = pytest.mark.usefixtures("step")


class LeftToSaeLens(JumpReLUTrainingSAE):
    """The engine takes no subclass for the class."""


def make_saes() -> list[JumpReLUTrainingSAE]:
    normalised = {"normalize_activations": "expected_average_only_in"}
    left = LeftToSaeLens(oracle.make_sae(seed=3, **normalised).cfg)
    return [
        oracle.make_sae(seed=0),
        oracle.make_sae(seed=1, **normalised),
        oracle.make_sae(seed=2, l0_coefficient=1.0, **normalised),
        left,
    ]


def test_a_snapshot_is_where_a_shorter_run_ends() -> None:
    saes = make_saes()
    batches = oracle.recorded_batches(60)
    taken: list[Snapshot] = []
    start = copy.deepcopy(saes)

    train_saes(
        saes,
        iter(batches),
        oracle.options_for(40, snapshot_steps=(7, 33, 40)),
        on_snapshot=taken.append,
    )

    assert sorted((s.step, s.index) for s in taken) == [
        (step, index) for step in (7, 33, 40) for index in range(4)
    ]
    for step in (7, 33, 40):
        shorter = copy.deepcopy(start)
        train_saes(shorter, iter(batches), oracle.options_for(step))
        for snapshot in (s for s in taken if s.step == step):
            wanted = shorter[snapshot.index]
            for name, value in oracle.parameters(snapshot.sae).items():
                assert torch.equal(value, oracle.parameters(wanted)[name]), (step, name)
            assert snapshot.sae.cfg.to_dict() == wanted.cfg.to_dict()
    for snapshot in (s for s in taken if s.step == 40):
        assert snapshot.sae is not saes[snapshot.index]
        assert torch.equal(snapshot.sae.W_dec, saes[snapshot.index].W_dec)


def test_snapshots_change_nothing() -> None:
    saes = make_saes()
    plain = copy.deepcopy(saes)
    batches = oracle.recorded_batches(60)
    train_saes(plain, iter(batches), oracle.options_for(40))
    options = oracle.options_for(40, snapshot_steps=(1, 2, 17))
    train_saes(saes, iter(batches), options, on_snapshot=lambda _: None)
    for sae, wanted in zip(saes, plain, strict=True):
        for name, value in oracle.parameters(sae).items():
            assert torch.equal(value, oracle.parameters(wanted)[name])


def test_steps_without_a_taker_or_beyond_the_run_are_refused() -> None:
    sae = oracle.make_sae()
    batches = oracle.recorded_batches(5)
    with pytest.raises(ValueError, match="on_snapshot"):
        train_saes([sae], iter(batches), oracle.options_for(5, snapshot_steps=(3,)))
    with pytest.raises(ValueError, match="on_snapshot"):
        train_saes([sae], iter(batches), oracle.options_for(5), on_snapshot=lambda _: None)
    with pytest.raises(ValueError, match=r"snapshot_steps holds 6, but the run has steps 1 to 5"):
        oracle.options_for(5, snapshot_steps=(3, 6))
