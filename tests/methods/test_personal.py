"""Methods that give clients models of their own: local training and fine-tuning."""

from __future__ import annotations

import pytest
import torch

from atoll.contract import Evaluate
from atoll.methods import FedAvg, FedProx, FineTune, Local
from atoll.tensors import Record, leaves

from .driver import Client, Played, blobs, network, whole

PLAN = {"lr": 0.2, "epochs": 2, "batch_size": 4}


def test_who_personalises() -> None:
    assert Local().personalised
    assert FineTune().personalised
    assert not FedAvg().personalised
    assert not FedProx().personalised


def test_local_is_each_client_training_alone() -> None:
    clients = blobs(8, 12, tested=10)
    played = Played(Local(**PLAN), network(normalised=True), clients).rounds(3)
    params, buffers = played.task.initial()
    assert torch.equal(played.params, params.flat())
    for name, value in buffers.items():
        assert torch.equal(played.state.buffers[name], value)
    for k in (0, 1):
        alone = Played(FedAvg(**PLAN), played.task, [clients[k]]).rounds(3)
        torch.testing.assert_close(played.memories[k].params.flat(), alone.params, rtol=1e-5, atol=1e-6)
        for name, value in alone.state.buffers.items():
            torch.testing.assert_close(played.memories[k].buffers[name], value, rtol=1e-5, atol=1e-6)
        assert int(played.memories[k].buffers["1.num_batches_tracked"]) == 3 * 2 * len(clients[k].inputs) // 4


def test_local_sends_nothing() -> None:
    played = Played(Local(**PLAN), network(), blobs(8, 12)).rounds(1)
    assert leaves(played.sent[0].values) == []
    assert played.method.broadcast(played.state, [0]).nbytes(0) == 4  # the learning rate


def test_local_predicts_with_the_clients_model_and_evaluation_changes_nothing() -> None:
    clients = blobs(20, 20, tested=20)
    played = Played(Local(**PLAN), network(), clients)
    fresh = played.personal(0)  # has not taken part: the initial model
    played.rounds(6)
    params, buffers = played.memories[0].params, played.memories[0].buffers
    assert clients[0].test is not None
    test = whole(*clients[0].test)
    wanted = played.task.totals(params, buffers, test)
    assert played.personal(0).loss == float(wanted.loss / wanted["count"])
    assert played.personal(0).loss < 0.5 * fresh.loss
    assert torch.equal(played.memories[0].params.flat(), params.flat())


def test_fine_tuning_leaves_the_global_model_to_fedavg() -> None:
    clients = blobs(8, 12, tested=10)
    tuned = Played(FineTune(**PLAN, finetune_epochs=3), network(), clients).rounds(2)
    before = tuned.params.clone()
    tuned.personal(0)
    assert torch.equal(tuned.params, before)
    assert torch.equal(tuned.params, Played(FedAvg(**PLAN), network(), clients).rounds(2).params)
    assert tuned.memories == {}


def test_fine_tuning_goes_on_where_the_schedule_has_run_out() -> None:
    """With the rate of the last round, 1e-6 of the first, it would be the global model again."""
    clients = blobs(8, 12, tested=10)
    ended = Played(
        FineTune(**PLAN, schedule="exponential:1e-6", finetune_epochs=3), network(), clients
    ).rounds(2)
    constant = Played(FineTune(**PLAN, finetune_epochs=3), network(), clients)
    constant.state = ended.state
    assert ended.personal(0).loss == pytest.approx(constant.personal(0).loss, rel=1e-6)


def test_fine_tuning_is_local_epochs_from_the_global_model() -> None:
    clients = blobs(8, 12, tested=10)
    for epochs in (1, 3):
        tuned = Played(FineTune(**PLAN, finetune_epochs=epochs), network(normalised=True), clients).rounds(2)
        alone = Played(FedAvg(**{**PLAN, "epochs": epochs}), tuned.task, [clients[1]])
        alone.state = tuned.state
        alone.round()
        assert clients[1].test is not None
        totals = tuned.task.totals(alone.state.params, alone.state.buffers, whole(*clients[1].test))
        measured = tuned.personal(1)
        torch.testing.assert_close(
            torch.tensor([measured.loss, measured.accuracy]),
            torch.stack([totals.loss, totals.accuracy]) / 10,
            rtol=1e-5,
            atol=1e-6,
        )


def test_fine_tuning_helps_clients_that_differ() -> None:
    """Two clients whose labels contradict each other: one model cannot serve both."""
    first, _ = blobs(30, 30, tested=30)
    assert first.test is not None
    swapped = Client(first.inputs, (first.targets + 1) % 3, (first.test[0], (first.test[1] + 1) % 3))
    played = Played(FineTune(**PLAN, finetune_epochs=5), network(), [first, swapped]).rounds(5)
    received = played.method.broadcast(played.state, [0]).received(0)
    plain = played.client(0, Evaluate(), received)[0].metrics
    assert played.personal(0).accuracy > float(plain.accuracy / plain["count"]) + 0.2
    assert isinstance(played.method.program("evaluate"), Evaluate)
    assert received.keys() == Record(params=0, buffers=0, lr=0).keys()
