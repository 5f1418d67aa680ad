"""Rules that compare a batch's losses before and after the step: the trainer's second forward pass."""

import pytest
import torch
from tests.training.runs import events, job, train
from torch import Tensor, nn

from polytask.core.noise import Noise
from polytask.tasks.mixture import Mixture, MixtureSpec
from polytask.training.devices import Devices
from polytask.training.losses import Forward, task_losses

DROPOUT = {"kind": "tabular", "embedding": 2, "hidden_sizes": [8], "dropout": 0.5}


@pytest.mark.parametrize("lookahead", ["same_batch", "next_batch"])
def test_famo_sees_the_same_dropout_again(tmp_path, lookahead):
    """With a step too small to change a weight no loss falls, so FAMO's logits stay and its weights are 1 / L."""
    rule = {"kind": "famo", "lookahead": lookahead}
    train(tmp_path / "run", train__rule=rule, train__optimizer__lr=1e-30, model__encoder=DROPOUT)
    steps = events(tmp_path / "run", "step")
    assert len(steps) > 4
    for step in steps:
        shares = [step["weights"][task] * step["losses"][task] for task in step["weights"]]
        equal = max(shares) / min(shares) - 1 < 1e-4
        assert equal == (lookahead == "same_batch" or step["step"] == 1)


def test_a_batch_counts_once_in_the_running_statistics():
    class Normalised(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.norm = inner, nn.BatchNorm1d(1)

        def forward(self, inputs: dict[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
            outputs = self.inner(inputs, tasks)
            return {**outputs, "click": self.norm(outputs["click"][:, None])[:, 0]}

    run = job(model__encoder=DROPOUT)
    devices = Devices(run.run)
    model = Normalised(run.build()).train()
    splits = {name: source.splits["train"] for name, source in run.data.sources.items()}
    pieces = next(iter(Mixture(splits, MixtureSpec(), 32, seed=0).batches(0)))
    with devices.settings(None):
        seed = Noise(0, "a step").torch_seed()
        devices.seed(seed)
        before = task_losses(model, pieces, run.targets, devices)
        mean = model.norm.running_mean.clone()
        with torch.no_grad():
            after = Forward(model, pieces, (), run.targets, devices, seed).losses()
    assert {task: loss.item() for task, loss in after.losses.items()} == {
        task: loss.item() for task, loss in before.losses.items()
    }
    assert after.counts == before.counts
    assert not any(loss.requires_grad for loss in after.losses.values())
    assert torch.equal(model.norm.running_mean, mean)
    assert int(model.norm.num_batches_tracked) == 1
