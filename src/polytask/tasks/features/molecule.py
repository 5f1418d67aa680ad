"""Molecules as graphs: an atom a node, a bond an edge.

Source: Gilmer et al. 2017, arXiv:1704.01212, for graphs whose atoms and bonds are told apart by the usual descriptors
(element, hydrogens, hybridisation, aromaticity; type of bond), computed by RDKit (extra `chem`).
Departures: nothing that needs a geometry; degree, charge and rings are added; a value beyond those listed counts as the
nearest, or as "other".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from polytask.core.inputs import GraphWidths
from polytask.tasks.examples import Ragged
from polytask.tasks.features.feature import Place
from polytask.tasks.features.graph import Lists, graph_inputs
from polytask.tasks.features.molecules import readable, readings
from polytask.tasks.features.options import MoleculeOptions

_PURPOSE = "a graph of molecules (kind: molecule)"

# each followed by one entry for every other
ELEMENTS = (6, 7, 8, 9, 15, 16, 17, 35, 53, 5, 14, 34)
HYBRIDISATIONS = ("SP", "SP2", "SP3", "SP3D", "SP3D2")
BONDS = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")
MOST_NEIGHBOURS, MOST_CHARGE, MOST_HYDROGENS = 5, 2, 4

ATOM_WIDTH = (
    len(ELEMENTS) + 1 + MOST_NEIGHBOURS + 1 + 2 * MOST_CHARGE + 1 + MOST_HYDROGENS + 1 + len(HYBRIDISATIONS) + 1 + 2
)
BOND_WIDTH = len(BONDS) + 1 + 2


class Molecule:
    """The inputs of a graph, all of whose nodes are of interest. Nothing is fitted."""

    kind, key = "molecule", "nodes"
    graph = GraphWidths(ATOM_WIDTH, BOND_WIDTH)

    def __init__(self, column: str, options: MoleculeOptions) -> None:
        self.column, self.options = column, options
        self.columns: tuple[str, ...] = (column,)

    def observe(self, frame: pl.DataFrame, place: Place) -> None:
        pass

    def finish(self, place: Place) -> None:
        pass

    def valid(self, frame: pl.DataFrame) -> np.ndarray:
        """bool [N]: the molecule can be read."""
        return readable(frame[self.column], _PURPOSE)

    def encode(self, frame: pl.DataFrame, place: Place) -> dict[str, Ragged]:
        atoms: list[list[float]] = []
        bonds: list[list[float]] = []
        pairs: list[tuple[int, int]] = []
        of_atoms, of_bonds = [0], [0]
        for molecule in readings(frame[self.column], place, self.kind, _PURPOSE):
            atoms.extend(atom_numbers(atom) for atom in molecule.GetAtoms())
            for bond in molecule.GetBonds():
                bonds.append(bond_numbers(bond))
                pairs.append((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
            of_atoms.append(len(atoms))
            of_bonds.append(len(bonds))
        nodes = Lists(np.array(atoms).reshape(-1, ATOM_WIDTH), np.array(of_atoms))
        edges = Lists(np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(of_bonds))
        features = np.array(bonds).reshape(-1, BOND_WIDTH)
        return graph_inputs(nodes, edges, features, np.ones(len(atoms), dtype=bool), directed=False)

    def to_json(self) -> dict[str, Any]:
        return {"column": self.column, **self.options.model_dump()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Molecule":
        return cls(values["column"], MoleculeOptions(**{key: values[key] for key in MoleculeOptions.model_fields}))


def atom_numbers(atom: Any) -> list[float]:
    """[ATOM_WIDTH] of an atom of RDKit: element, neighbours, charge, hydrogens, hybridisation, aromatic, in a ring."""
    charge = min(max(atom.GetFormalCharge(), -MOST_CHARGE), MOST_CHARGE) + MOST_CHARGE
    return [
        *_listed(atom.GetAtomicNum(), ELEMENTS),
        *_counted(atom.GetDegree(), MOST_NEIGHBOURS),
        *_counted(charge, 2 * MOST_CHARGE),
        *_counted(atom.GetTotalNumHs(), MOST_HYDROGENS),
        *_listed(str(atom.GetHybridization()), HYBRIDISATIONS),
        float(atom.GetIsAromatic()),
        float(atom.IsInRing()),
    ]


def bond_numbers(bond: Any) -> list[float]:
    """[BOND_WIDTH] of a bond of RDKit: its type, conjugated, in a ring."""
    return [*_listed(str(bond.GetBondType()), BONDS), float(bond.GetIsConjugated()), float(bond.IsInRing())]


def _listed(value: Any, known: Sequence[Any]) -> list[float]:
    """A 1 at the value's place, or at the end for another."""
    found = [0.0] * (len(known) + 1)
    found[known.index(value) if value in known else -1] = 1.0
    return found


def _counted(value: int, most: int) -> list[float]:
    """A 1 at 0 ... most."""
    found = [0.0] * (most + 1)
    found[min(value, most)] = 1.0
    return found
