"""What checks annotations while tests run: beartype, which takes an int for a float here, as type checkers do."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
