"""What a gate's method adds to a task's loss reaches the training step."""

import pytest
from tests.training.runs import job

from polytask.sharing.tape import listen
from polytask.tasks.mixture import Mixture, MixtureSpec
from polytask.training.devices import Devices
from polytask.training.losses import task_losses


def test_a_gates_penalty_is_part_of_its_tasks_loss():
    losses = {}
    for entropy in (0.0, 0.5):
        gate = {"select": {"kind": "dselect_k", "k": 2, "entropy": entropy}}
        run = job(model__sharing={"kind": "dselect_k", "experts": 4, "gate": gate})
        devices, model = Devices(run.run), run.build()
        splits = {name: source.splits["train"] for name, source in run.data.sources.items()}
        pieces = next(iter(Mixture(splits, MixtureSpec(), 32, seed=0).batches(0)))
        with devices.settings(None), listen() as outside:
            found = task_losses(model, pieces, run.targets, devices)
        losses[entropy] = found.losses
        with listen() as tape:
            model(pieces[0].inputs)
        assert not outside.gates  # the step's own tape listened
    assert set(tape.penalties) == set(losses[0.5])
    for task, penalty in tape.penalties.items():
        expected = losses[0.0][task].item() + penalty.item()
        assert losses[0.5][task].item() == pytest.approx(expected, rel=1e-6)
        assert penalty.item() > 0.1
