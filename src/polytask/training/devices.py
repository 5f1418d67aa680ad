"""The device, precision and processes of a run, through accelerate, and torch's settings for its duration."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as distributed

from polytask.core.errors import BadValue
from polytask.training.spec import RunSpec

_PRECISION = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}


class Devices:
    """Where a run computes.

    Attributes:
        device: of the model and the batches.
        rank, world: this process and how many there are; torchrun starts them.
        scaler: a GradScaler with fp16, else None.
    """

    def __init__(self, run: RunSpec) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available.get(run.device, True):
            raise BadValue("run.device", run.device, "a device that this machine has: auto | cpu")
        if run.precision == "fp16" and not (available["cuda"] and run.device in ("auto", "cuda")):
            raise BadValue("run.precision", run.precision, "float32 | bf16 without a CUDA device")
        if run.device == "cuda" or (run.device == "auto" and available["cuda"]):
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matrix products ask for
        AcceleratorState._reset_state()  # another run in this process may have had another precision
        self._accelerator = Accelerator(mixed_precision=_PRECISION[run.precision], cpu=run.device == "cpu")
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        self.scaler: Any = self._accelerator.scaler
        self._run = run

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        return self._accelerator.autocast()

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            distributed.barrier()

    def agreed(self, stop: bool) -> bool:
        """The first process's decision, on every process."""
        if self.world == 1:
            return stop
        decision = [stop]
        distributed.broadcast_object_list(decision, src=0)
        return bool(decision[0])

    @contextmanager
    def settings(self, threads: int | None = None) -> Iterator[None]:
        """torch's threads and deterministic flag as the run wants them; these and the random state come back after."""
        threads = threads or self._run.threads
        old_threads, old_flag = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        cuda = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            try:
                if threads is not None:
                    torch.set_num_threads(threads)
                torch.use_deterministic_algorithms(self._run.deterministic)
                yield
            finally:
                torch.set_num_threads(old_threads)
                torch.use_deterministic_algorithms(old_flag)
