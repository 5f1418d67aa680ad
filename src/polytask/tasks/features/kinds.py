"""The kinds of features. Another kind is a file beside this one, its options in options.py and its name in FEATURES."""

from typing import Any

from polytask.tasks.features.array import Array
from polytask.tasks.features.categorical import Categorical
from polytask.tasks.features.graph import Graph
from polytask.tasks.features.image import Image
from polytask.tasks.features.molecule import Molecule
from polytask.tasks.features.morgan import Morgan
from polytask.tasks.features.multi_hot import MultiHot
from polytask.tasks.features.numeric import Numeric
from polytask.tasks.features.piecewise_linear import PiecewiseLinear
from polytask.tasks.features.sequence import Sequence
from polytask.tasks.features.text import Text
from polytask.tasks.features.vector import Vector

FEATURES: dict[str, Any] = {
    feature.kind: feature
    for feature in (
        *(Numeric, PiecewiseLinear, Categorical, MultiHot, Sequence, Vector, Array),
        *(Image, Morgan, Molecule, Graph, Text),
    )
}
