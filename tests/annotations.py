"""What checks annotations while tests run: beartype, which takes an int for a float here, as type checkers do."""

from operator import itemgetter

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

numpy_and_torch = itemgetter("numpy", "torch")
"""Of `polytask.testing.contract.generators`: Python's own is what beartype draws from."""
