"""Times the trainer's step and the same step written by hand in plain PyTorch; prints {"hand": ms, "ours": ms}.

Medians of 200 interleaved steps, batches included. The clock is the processor time of this process, so that a busy
machine does not blur it.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.training.runs import job

from polytask.core.noise import Noise
from polytask.training.devices import Devices
from polytask.training.stage import Stage

ROWS, BATCH, STEPS, WARMUP = 20_000, 1024, 200, 20


def main() -> None:
    x = Noise(0, "x").normal(ROWS * 8).reshape(ROWS, 8).astype(np.float32)
    rows = {f"x{i}": x[:, i] for i in range(8)} | {"a": (x[:, 0] > 0).astype(int), "b": (x[:, 1] > 0).astype(int)}
    made = job(
        rows,
        tasks={"a": "binary", "b": "binary"},
        model__encoder={"kind": "mlp", "hidden_sizes": [64, 64]},
        train__batch_size=BATCH,
    )
    split: Any = made.data.sources["data"].splits["train"]
    model, twin = made.build().train(), made.build().train()
    devices = Devices(made.run)
    stage = Stage(made, 0, model, [name for name, _ in model.named_parameters()], {"data": split}, {}, devices)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))

    def by_hand(step: int) -> None:
        start = step * BATCH % (len(split) - BATCH)
        index = order[start : start + BATCH]
        inputs = {name: tensor[index] for name, tensor in split.inputs.items()}
        outputs = twin(inputs, ["a", "b"])
        losses = [binary_cross_entropy_with_logits(outputs[task], split.labels[task][index]) for task in ("a", "b")]
        optimizer.zero_grad()
        (losses[0] + losses[1]).backward()
        optimizer.step()

    def batches() -> Iterator[tuple[int, Any]]:
        step = 0
        while True:
            for pieces in stage.batches(step):
                yield step, pieces
                step += 1

    found, hand, ours = batches(), [], []
    with devices.settings():
        for step in range(STEPS + WARMUP):
            started = time.process_time()
            by_hand(step)
            between = time.process_time()
            number, pieces = next(found)
            stage.train(pieces, number)
            hand.append(between - started)
            ours.append(time.process_time() - between)
    medians = {"hand": statistics.median(hand[WARMUP:]) * 1e3, "ours": statistics.median(ours[WARMUP:]) * 1e3}
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
