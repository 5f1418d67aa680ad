"""The order of the rows of a group (a user's items): a score a row, higher for a higher label."""

from polytask.tasks.kinds import Kind
from polytask.tasks.labels.regression import encoded, fitted, standardised

METRICS = ("grouped_auroc",)

KIND = Kind(
    losses=("pairwise_logistic",),
    metrics=METRICS,
    companions=METRICS,
    fit=fitted,  # standardised labels have the same order, and are as far apart as single precision can tell
    schema=standardised,
    encode=encoded,
    decode=lambda target, outputs: {target.task.name: outputs.numpy()},
    grouped=True,
)
