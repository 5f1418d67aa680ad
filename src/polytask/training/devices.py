"""The device, precision and processes of a run, through accelerate, and torch's settings for its duration."""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as distributed

from polytask.core.errors import BadValue, CheckpointError, PolytaskError
from polytask.training.spec import RunSpec

_PRECISION = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}
T = TypeVar("T")


class Devices:
    """Where a run computes.

    Attributes:
        device: of the model and the batches.
        rank, world: this process and how many there are; torchrun starts them.
        scaler: a GradScaler with fp16, else None.
        precision: as in the recipe.
    """

    def __init__(self, run: RunSpec) -> None:
        self.precision = run.precision
        self._run = run
        _check(run)
        if run.device == "cuda" or (run.device == "auto" and torch.cuda.is_available()):
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matrix products ask for
        # accelerate takes gloo for processes without an accelerator only when it is told that they compute on the CPU
        on_cpu = run.device == "cpu" or (run.device == "auto" and not torch.accelerator.is_available())
        self._accelerator = _accelerator(_PRECISION[run.precision], on_cpu)
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        self.scaler: Any = self._accelerator.scaler
        started = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's
        if started != self.world:
            raise BadValue("run.device", run.device, f"cpu or cuda where torchrun starts {started} processes")

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.precision == "float32" else self._accelerator.autocast()

    def seed(self, number: int) -> None:
        """Seeds the generators that this run's modules draw from, and no other device's.

        torch.manual_seed seeds every kind of accelerator; for those not in use yet it remembers each call.
        """
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)
        elif self.device.type == "mps":
            torch.mps.manual_seed(number)

    def on_first(self, action: Callable[[], T]) -> T:
        """What `action` returns on the first process, which alone runs it; on every process, and so is its error."""
        if self.world == 1:
            return action()
        outcome: list[Any] = [None, None]
        failed: PolytaskError | None = None
        if self.is_first:
            try:
                outcome[0] = action()
            except PolytaskError as error:
                failed, outcome[1] = error, str(error)
        distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise failed or CheckpointError(outcome[1])
        return outcome[0]

    @contextmanager
    def settings(self, threads: int | None = None) -> Iterator[None]:
        """torch's threads and deterministic flag as the run wants them; these and the random state come back after."""
        threads = threads or self._run.threads
        old_threads, old_flag = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        old_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        memory: Any = torch.utils.deterministic  # its attribute is made when the module is loaded
        old_fill = memory.fill_uninitialized_memory
        cuda = [torch.cuda.current_device()] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            try:
                if threads is not None:
                    torch.set_num_threads(threads)
                torch.use_deterministic_algorithms(self._run.deterministic)
                # no operation reads memory that it has not written; filling it first would only cost time
                memory.fill_uninitialized_memory = False
                yield
            finally:
                torch.set_num_threads(old_threads)
                torch.use_deterministic_algorithms(old_flag, warn_only=old_warn_only)
                memory.fill_uninitialized_memory = old_fill


def _check(run: RunSpec) -> None:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(run.device, True):
        here = ["auto", "cpu", *(name for name, there in available.items() if there)]
        raise BadValue("run.device", run.device, f"a device that this machine has: {' | '.join(here)}")
    if run.precision == "fp16" and not (available["cuda"] and run.device in ("auto", "cuda")):
        raise BadValue("run.precision", run.precision, "float32 | bf16 without a CUDA device")


def _accelerator(precision: str, on_cpu: bool) -> Any:
    """A new Accelerator; the first under torchrun starts the process group, which lives until the process ends."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # Another run in this process may have had another precision or device.
    AcceleratorState._reset_state(reset_partial_state=True)
    was_running = distributed.is_available() and distributed.is_initialized()
    threads = torch.get_num_threads()
    accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu)
    torch.set_num_threads(threads)  # accelerate sets them for processes on the CPU; `settings` decides here
    if not was_running and distributed.is_available() and distributed.is_initialized():
        atexit.register(_leave)
    return accelerator


def _leave() -> None:
    """Leaves the process group together: gloo's threads may abort a process whose peer is gone before it."""
    if distributed.is_initialized():
        with suppress(RuntimeError):  # the peer ended already, by an error that it has told
            distributed.barrier()
        distributed.destroy_process_group()
