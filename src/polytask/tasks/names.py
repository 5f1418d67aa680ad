"""The bundled and the generated sources by name; a module is imported when its name is looked up.

A bundled source (`builtin: NAME` in a recipe) is a function `(rows: {split: how many}, seed) -> frame` whose column
`split` says train, valid or test. `rows` may be empty or name some of the splits; the source has defaults for the
others. A generated one (`NAME: {...}`) takes its options, the field of that name in `SourceSpec`, before them.
"""

from polytask.core.catalogue import Catalogue

SOURCES = Catalogue("builtin source", {"multidigits": "polytask.tasks.sources.multidigits:source"})

GENERATED = Catalogue(
    "generated source",
    {
        "scenes": "polytask.tasks.sources.scenes:scenes",
        "synthetic": "polytask.tasks.sources.synthetic:synthetic",
        "sensor": "polytask.tasks.sources.sensor:sensor",
        "graphs": "polytask.tasks.sources.graphs:graphs",
    },
)
