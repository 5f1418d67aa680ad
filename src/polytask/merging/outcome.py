"""What a merge reports: measured while it ran, tensor by tensor."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TensorReport:
    """One output tensor.

    Attributes:
        name, group: of the job.
        tasks: those that have this tensor, in the order of the rows below.
        elements: of the tensor.
        norms: length of each task's delta (of each model's values where no base was subtracted).
        cosines: [T][T], None beside a zero vector.
        conflicts: [T][T], share of opposite signs among the elements where both are not zero, None where none is; of
            the first of every four blocks of 262,144 elements.
        merged_norm: length of what was added to the base (of the result where no base was subtracted).
        base_norm: length of the base's values, None without a base.
        weights: task -> the weight that a rule on Gram matrices chose for this tensor; empty for other rules.
        kept: [T][T], share of elements that the transforms of both tasks keep; empty without transforms.
        taken: True for a tensor that was taken over, not merged; then nothing else was measured.
    """

    name: str
    group: str
    tasks: list[str]
    elements: int
    norms: list[float] = field(default_factory=list)
    cosines: list[list[float | None]] = field(default_factory=list)
    conflicts: list[list[float | None]] = field(default_factory=list)
    merged_norm: float = 0.0
    base_norm: float | None = None
    weights: dict[str, float] = field(default_factory=dict)
    kept: list[list[float]] = field(default_factory=list)
    taken: bool = False


@dataclass(frozen=True)
class MergeReport:
    """A finished merge.

    Attributes:
        tensors: in the order of the jobs; those of shards that an earlier, interrupted run wrote are included.
        files: the output's weight files, in order.
        bytes_read, bytes_written: of tensors, by this run.
        seconds: of this run.
        shards_kept: how many shards an interrupted run had finished.
    """

    tensors: list[TensorReport]
    files: list[str]
    bytes_read: int
    bytes_written: int
    seconds: float
    shards_kept: int
