"""Errors as other processes raise them."""

import pickle

from polytask.core.errors import UnknownName


def test_errors_keep_their_type_and_words_over_a_pipe() -> None:
    error = UnknownName("rule", "tise", ["ties"], "plan.rule")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UnknownName
    assert str(again) == str(error)
