"""The direction of the surface at each pixel: three numbers, of which only the direction counts."""

from torch.nn import functional as F

from polytask.core.outputs import OutputSchema
from polytask.tasks.kinds import Kind
from polytask.tasks.labels.dense_regression import encoded, fitted

METRICS = ("mean_angle", "median_angle", "within_11_25", "within_22_5", "within_30")

KIND = Kind(
    losses=("cosine", "l1"),
    metrics=METRICS,
    companions=METRICS,
    fit=lambda task, frames, place: fitted(task, frames, place, 3),
    schema=lambda target: OutputSchema("numbers", ("x", "y", "z"), (-1.0, 1.0)),
    encode=lambda target, frame, place: encoded(target, frame, place, 3),
    decode=lambda target, outputs: {target.task.name: F.normalize(outputs, dim=-1).numpy()},
)
