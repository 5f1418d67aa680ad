"""`graphs:` generated graphs whose nodes belong to communities, with a label of a node, of a link or of the whole.

Nodes of one community are joined more often than others (a stochastic block model); some nodes' numbers tell their
community, the ends of interest never do, so that a label has to be found from the edges. Every number of a graph
depends on the seed, the split and the graph's own number alone, so more graphs or another order change none.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from polytask.core.noise import Noise
from polytask.tasks.data_spec import GraphSpec

DEFAULT_ROWS = {"train": 1000, "valid": 250, "test": 250}
LABELS = {"node": "community", "link": "same", "graph": "largest"}


def graphs(spec: GraphSpec, rows: Mapping[str, int], seed: int) -> pl.DataFrame:
    """Columns nodes (a 1 for the community, or for "unknown"), edges (pairs), interest, split, and the label: of a node
    its `community`, of a link whether both ends are of the `same`, of a graph the `largest` (of several, the first)."""
    frames = []
    for split, count in (DEFAULT_ROWS | dict(rows)).items():
        noise = Noise(seed, "graphs", spec.interest, split)
        found = [_graph(spec, draws) for draws in _draws(spec, noise, count)]
        columns = {name: [graph[name] for graph in found] for name in found[0]}
        frames.append(pl.DataFrame(columns).with_columns(pl.lit(split).alias("split")))
    return pl.concat(frames)


def _draws(spec: GraphSpec, noise: Noise, count: int) -> list[dict[str, np.ndarray]]:
    """What each of the graphs 0 ... count - 1 is made of: numbers in [0, 1)."""
    most = spec.nodes[1]
    sizes = {"size": 1, "shares": spec.communities, "community": most, "shown": most, "edges": most * most, "ends": 3}
    drawn = {
        what: noise.child(what).uniform(count * numbers).reshape(count, numbers) for what, numbers in sizes.items()
    }
    return [{what: numbers[row] for what, numbers in drawn.items()} for row in range(count)]


def _graph(spec: GraphSpec, draws: Mapping[str, np.ndarray]) -> dict[str, Any]:
    least, most = spec.nodes
    size = least + int(draws["size"][0] * (most - least + 1))
    shares = 0.1 + draws["shares"]
    community = np.searchsorted(np.cumsum(shares / shares.sum())[:-1], draws["community"][:size], side="right")
    interest, label = _question(spec, community, draws["ends"])
    same = community[:, None] == community[None, :]
    joined = draws["edges"].reshape(most, most)[:size, :size] < np.where(same, spec.inside, spec.between)
    joined = np.triu(joined, 1)
    if spec.interest == "link":
        joined[interest[0], interest[1]] = joined[interest[1], interest[0]] = False  # that is not to be read off
    known = draws["shown"][:size] < spec.shown
    if spec.interest != "graph":
        known[interest] = False
    numbers = np.eye(spec.communities + 1)[np.where(known, community, spec.communities)]
    return {
        "nodes": numbers.tolist(),
        "edges": np.argwhere(joined).tolist(),
        "interest": interest,
        LABELS[spec.interest]: label,
    }


def _question(spec: GraphSpec, community: np.ndarray, draws: np.ndarray) -> tuple[list[int], int]:
    """The nodes of interest, and the label."""
    if spec.interest == "graph":
        return list(range(len(community))), int(np.bincount(community).argmax())
    first = int(draws[0] * len(community))
    if spec.interest == "node":
        return [first], int(community[first])
    others = np.delete(np.arange(len(community)), first)
    alike = community[others] == community[first]
    wanted = others[alike if draws[1] < 0.5 else ~alike]  # as many of either kind, where there are both
    second = wanted if len(wanted) else others
    other = int(second[int(draws[2] * len(second))])
    return [first, other], int(community[first] == community[other])
