"""The bundled sources by name (`builtin:` in a recipe); a module is imported when its name is looked up.

A source is a function `(rows: {split: how many}, seed) -> frame` whose column `split` says train, valid or test. `rows`
may be empty or name some of the splits; the source has defaults for the others.
"""

from polytask.core.catalogue import Catalogue

SOURCES = Catalogue("builtin source", {"multidigits": "polytask.tasks.sources.multidigits:source"})
