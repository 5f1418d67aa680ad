from polytask.merging.json_schema import plan_schema, shipped_schema


def test_the_shipped_schema_is_current() -> None:
    """`make docs` writes it anew."""
    assert shipped_schema() == plan_schema()
