"""Metrics: how well outputs agree with the labels that exist; None where that is undefined, never a made-up 0.

Outputs are logits (binary, multiclass, multilabel) or values in the label's units (regression). The shapes tell which:
outputs [B] and labels [B] are binary or regression; outputs [B, C] and labels [B] multiclass; both [B, L] multilabel,
where the result is the mean over the columns for which the metric is defined. In maps every pixel counts as a row.
Whether a metric is defined depends on the labels alone, so one split always gives the same set of defined metrics.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.core.errors import BadValue, NotFinite

# (outputs float64, labels) of rows with a label -> value; None where undefined
Compute = Callable[[Tensor, Tensor], float | None]
GroupedCompute = Callable[[Tensor, Tensor, Tensor], float | None]  # and the groups of the rows

CALIBRATION_BINS = 15  # equal-width bins of probability, as in Guo et al. 2017 (arXiv:1706.04599)


@dataclass(frozen=True)
class Metric:
    """A name's functions.

    Attributes:
        higher_is_better: False for errors.
        single: for binary or regression outputs [n].
        multiclass: for outputs [n, C]; None if the metric has no such form.
        grouped: instead of both, for a metric that is taken within groups of rows.
        together: whether `single` gets all numbers of the rows end to end; otherwise [n, L] is taken column by column.
    """

    higher_is_better: bool
    single: Compute | None
    multiclass: Compute | None = None
    grouped: GroupedCompute | None = None
    together: bool = False

    def compute(self, outputs: Tensor, labels: Tensor, present: Tensor, groups: Tensor | None = None) -> float | None:
        """The metric over the labels that exist, in float64; None where it is undefined.

        Args:
            groups: int64 [n], for a metric that is taken within groups.

        Raises:
            NotFinite: an output of a row with a label is NaN or infinite.
        """
        if present.shape != labels.shape or outputs.shape[: labels.ndim] != labels.shape:
            shapes = [list(tensor.shape) for tensor in (outputs, labels, present)]
            raise BadValue("the shape of outputs, labels and present", shapes, "as many rows in each")
        outputs = outputs.detach().to("cpu", torch.float64)
        labels, present = labels.cpu(), present.cpu()
        if labels.ndim == 2 and not self.together:
            columns = range(labels.shape[1])
            return _mean_defined([self.compute(outputs[:, c], labels[:, c], present[:, c]) for c in columns])
        outputs, labels = outputs[present], labels[present]
        if not torch.isfinite(outputs).all():
            raise NotFinite(f"{int((~torch.isfinite(outputs)).sum())} of {outputs.numel()} outputs are NaN or infinite")
        if not len(labels):
            return None
        if self.grouped is not None:
            if groups is None or outputs.ndim != 1:
                shape = list(outputs.shape)
                raise BadValue("outputs of a metric within groups", shape, "one output a row, and the rows' groups")
            return self.grouped(outputs, labels, groups.cpu()[present])
        if outputs.ndim == 1 and self.single is not None:
            return self.single(outputs, labels)
        if self.multiclass is None:
            raise BadValue("the shape of outputs", list(outputs.shape), "one output a row for this metric")
        return self.multiclass(outputs, labels.long())


def _mean_defined(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _one_against_rest(binary: Compute) -> Compute:
    """Mean over the classes where the metric of (this class, any other) is defined, each ranked by its probability."""

    def compute(outputs: Tensor, labels: Tensor) -> float | None:
        scores = _log_odds(outputs)
        return _mean_defined([binary(scores[:, c], (labels == c).long()) for c in range(outputs.shape[1])])

    return compute


def _log_odds(outputs: Tensor) -> Tensor:
    """log p / (1 - p) of every class [n, C]: in the order of the probabilities, also where those round to 1."""
    log_p = outputs.log_softmax(dim=1)
    odds = log_p - torch.log1p(-log_p.exp())
    # Only a row's largest probability can be near 1; its odds are taken from the logits, where nothing cancels.
    top = outputs.argmax(dim=1, keepdim=True)
    rest = outputs.scatter(1, top, -torch.inf).logsumexp(dim=1, keepdim=True)
    return odds.scatter(1, top, outputs.gather(1, top) - rest)


def _auroc(outputs: Tensor, labels: Tensor) -> float | None:
    """Probability that a positive row is above a negative one, ties half (the area under the ROC); needs both."""
    positives, negatives = _counts_by_level(outputs, labels)
    if not positives.any() or not negatives.any():
        return None
    below = np.cumsum(negatives) - negatives / 2
    return float((positives * below).sum() / (positives.sum() * negatives.sum()))


def _grouped_auroc(outputs: Tensor, labels: Tensor, groups: Tensor) -> float | None:
    """Mean over the groups, weighted by their rows, of the probability that the one of two rows with the higher label
    has the higher output, ties half; groups with one label are left out, and one with two is needed.

    With binary labels it is the groups' AUROC; Zhu et al. 2017 (optimized cost per click, KDD) weigh it by a user's
    rows.
    """
    order = groups.argsort(stable=True)
    sizes = torch.unique_consecutive(groups[order], return_counts=True)[1].tolist()
    total = weights = 0.0
    for output, label in zip(outputs[order].split(sizes), labels[order].split(sizes), strict=True):
        share = _concordance(output, label)
        if share is not None:
            total, weights = total + len(label) * share, weights + len(label)
    return total / weights if weights else None


def _concordance(outputs: Tensor, labels: Tensor) -> float | None:
    """The share of the pairs with different labels that the outputs order alike, ties half: level against level."""
    right = pairs = 0.0
    for level in labels.unique(sorted=True)[1:]:
        rows = labels <= level
        positive = labels[rows] == level
        share, count = _auroc(outputs[rows], positive), float(positive.sum() * (~positive).sum())
        assert share is not None  # the lowest level lies below
        right, pairs = right + share * count, pairs + count
    return right / pairs if pairs else None


def _average_precision(outputs: Tensor, labels: Tensor) -> float | None:
    """Sum over thresholds of precision times the step in recall; needs a positive label."""
    positives, negatives = (counts[::-1] for counts in _counts_by_level(outputs, labels))
    if not positives.any():
        return None
    precision = np.cumsum(positives) / np.cumsum(positives + negatives)
    return float((precision * positives).sum() / positives.sum())


def _counts_by_level(outputs: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """How many positives and negatives (float64) each distinct output has, from the smallest output to the largest.

    Counted here, not by torchmetrics, whose curves are in single precision, make ties of large logits by a sigmoid, and
    take five times as long, which thousands of tasks or classes would feel.
    """
    order = np.argsort(outputs.numpy())
    sorted_outputs, positive = outputs.numpy()[order], labels.numpy()[order] == 1
    ends = np.flatnonzero(np.diff(sorted_outputs, append=np.inf))  # the last row of each level
    positives = np.diff(np.cumsum(positive)[ends], prepend=0).astype(np.float64)
    return positives, np.diff(ends, prepend=-1) - positives


def _confusion(outputs: Tensor, labels: Tensor) -> Tensor:
    """float64 [C, C]: rows are labels, columns the predicted classes (binary: positive where p > 1/2)."""
    from torchmetrics.functional.classification import binary_confusion_matrix, multiclass_confusion_matrix

    if outputs.ndim == 1:
        return binary_confusion_matrix((outputs > 0).long(), labels.long()).to(torch.float64)
    classes = outputs.shape[1]
    return multiclass_confusion_matrix(outputs.argmax(dim=1), labels, num_classes=classes).to(torch.float64)


def _accuracy(outputs: Tensor, labels: Tensor) -> float | None:
    table = _confusion(outputs, labels)
    return float(table.trace() / table.sum())


def _balanced_accuracy(outputs: Tensor, labels: Tensor) -> float | None:
    """Mean recall of the classes that occur; needs two of them."""
    table = _confusion(outputs, labels)
    rows = table.sum(dim=1)
    occurs = rows > 0
    return float((table.diagonal()[occurs] / rows[occurs]).mean()) if int(occurs.sum()) > 1 else None


def _f1(outputs: Tensor, labels: Tensor) -> float | None:
    """2 TP / (2 TP + FP + FN) of the positive class; needs a positive label."""
    table = _confusion(outputs, labels)
    return float(2 * table[1, 1] / (table[1].sum() + table[:, 1].sum())) if table[1].sum() > 0 else None


def _f1_macro(outputs: Tensor, labels: Tensor) -> float | None:
    """Mean F1 of the classes that are a label or a prediction of some row."""
    table = _confusion(outputs, labels)
    used = table.sum(dim=0) + table.sum(dim=1)
    return float((2 * table.diagonal()[used > 0] / used[used > 0]).mean())


def _matthews(outputs: Tensor, labels: Tensor) -> float | None:
    """Correlation of label and prediction (Gorodkin 2004 for several classes); needs two classes among the labels.

    Constant predictions give 0/0; they tell nothing about the labels, and 0 is the limit for predictions ever nearer to
    constant. Computed here from the counts because torchmetrics does it in single precision, where the terms cancel.
    """
    table = _confusion(outputs, labels)
    rows, columns, total = table.sum(dim=1), table.sum(dim=0), table.sum()
    labels_spread, outputs_spread = total**2 - (rows**2).sum(), total**2 - (columns**2).sum()
    if labels_spread == 0:
        return None
    covariance = table.trace() * total - (rows * columns).sum()
    return float(covariance / (labels_spread.sqrt() * outputs_spread.sqrt())) if outputs_spread > 0 else 0.0


def _log_loss(outputs: Tensor, labels: Tensor) -> float | None:
    """Mean of -log p(label), in nats, from the logits."""
    if outputs.ndim == 1:
        return float(F.binary_cross_entropy_with_logits(outputs, labels.to(torch.float64)))
    return float(F.cross_entropy(outputs, labels))


def _calibration_error(outputs: Tensor, labels: Tensor) -> float | None:
    """Expected calibration error: mean distance between confidence and frequency over bins, weighted by their rows.

    Binary: the probability of the positive class; multiclass: that of the predicted class.
    """
    from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

    bins = CALIBRATION_BINS
    if outputs.ndim == 1:
        return float(binary_calibration_error(outputs.sigmoid(), labels.long(), n_bins=bins))
    classes = outputs.shape[1]
    return float(multiclass_calibration_error(outputs.softmax(dim=1), labels, num_classes=classes, n_bins=bins))


def _r2(outputs: Tensor, labels: Tensor) -> float | None:
    """1 - squared error / squared deviation of the labels; needs two different labels."""
    from torchmetrics.functional import r2_score

    outputs, labels = _centred(outputs, labels)
    return float(r2_score(outputs, labels)) if _varies(labels) else None


def _explained_variance(outputs: Tensor, labels: Tensor) -> float | None:
    """1 - variance of the error / variance of the labels; needs two different labels."""
    from torchmetrics.functional import explained_variance

    outputs, labels = _centred(outputs, labels)
    return float(torch.as_tensor(explained_variance(outputs, labels))) if _varies(labels) else None


def _rmse(outputs: Tensor, labels: Tensor) -> float | None:
    from torchmetrics.functional import mean_squared_error

    return float(mean_squared_error(outputs, labels.to(torch.float64), squared=False))


def _mae(outputs: Tensor, labels: Tensor) -> float | None:
    from torchmetrics.functional import mean_absolute_error

    return float(mean_absolute_error(outputs, labels.to(torch.float64)))


def _mean_iou(outputs: Tensor, labels: Tensor) -> float | None:
    """Mean over the classes that are a label or a prediction of intersection over union (Jaccard)."""
    table = _confusion(outputs, labels)
    union = table.sum(dim=0) + table.sum(dim=1) - table.diagonal()
    return float((table.diagonal()[union > 0] / union[union > 0]).mean())


def _relative_error(outputs: Tensor, labels: Tensor) -> float | None:
    """Mean of |output - label| / |label| over the labels that are not 0; needs one."""
    labels = labels.to(torch.float64)
    usable = labels != 0
    return float(((outputs - labels).abs() / labels.abs())[usable].mean()) if bool(usable.any()) else None


def _angles(outputs: Tensor, labels: Tensor) -> Tensor:
    """Degrees between vectors of three numbers, given end to end."""
    cosines = F.cosine_similarity(outputs.view(-1, 3), labels.view(-1, 3).to(torch.float64), dim=-1)
    return torch.rad2deg(cosines.clamp(-1, 1).acos())


def _mean_angle(outputs: Tensor, labels: Tensor) -> float | None:
    return float(_angles(outputs, labels).mean())


def _median_angle(outputs: Tensor, labels: Tensor) -> float | None:
    return float(_angles(outputs, labels).median())


def _box_iou(outputs: Tensor, labels: Tensor) -> float | None:
    """Mean over the rows of intersection over union of two boxes (left, top, right, bottom), given end to end.

    Written here, as torchmetrics' needs torchvision. A box whose right is not beyond its left covers nothing.
    """
    found, true = outputs.view(-1, 4), labels.view(-1, 4).to(torch.float64)
    both = torch.cat([found[:, :2].maximum(true[:, :2]), found[:, 2:].minimum(true[:, 2:])], dim=1)
    common = _areas(both)
    return float((common / (_areas(found) + _areas(true) - common)).mean())


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)


def _within(degrees: float) -> Compute:
    """The share of vectors that are less than so far off."""
    return lambda outputs, labels: float((_angles(outputs, labels) < degrees).double().mean())


def _centred(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both less the labels' mean: torchmetrics subtracts squares, which cancel where values are large and close."""
    labels = labels.to(torch.float64)
    centre = labels.mean()
    return outputs - centre, labels - centre


def _varies(labels: Tensor) -> bool:
    return bool(labels.min() < labels.max())


METRICS: dict[str, Metric] = {
    "auroc": Metric(True, _auroc, _one_against_rest(_auroc)),
    "grouped_auroc": Metric(True, None, grouped=_grouped_auroc),
    "average_precision": Metric(True, _average_precision, _one_against_rest(_average_precision)),
    "accuracy": Metric(True, _accuracy, _accuracy),
    "balanced_accuracy": Metric(True, _balanced_accuracy, _balanced_accuracy),
    "f1": Metric(True, _f1, _f1_macro),
    "matthews": Metric(True, _matthews, _matthews),
    "log_loss": Metric(False, _log_loss, _log_loss),
    "calibration_error": Metric(False, _calibration_error, _calibration_error),
    "r2": Metric(True, _r2),
    "explained_variance": Metric(True, _explained_variance),
    "rmse": Metric(False, _rmse),
    "mae": Metric(False, _mae),
    "mean_iou": Metric(True, _mean_iou, _mean_iou),
    "box_iou": Metric(True, _box_iou, together=True),
    "relative_error": Metric(False, _relative_error),
    "mean_angle": Metric(False, _mean_angle),
    "median_angle": Metric(False, _median_angle),
    "within_11_25": Metric(True, _within(11.25)),
    "within_22_5": Metric(True, _within(22.5)),
    "within_30": Metric(True, _within(30)),
}
