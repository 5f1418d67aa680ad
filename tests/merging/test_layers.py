from polytask.merging.layers import depths, layer_of, place_of, renumbered, stacks

LLAMA = ["model.embed_tokens.weight", "model.layers.0.a", "model.layers.1.a", "model.layers.2.a", "model.norm.weight"]


def test_depth_runs_from_the_first_layer_to_the_last() -> None:
    assert list(depths(LLAMA).values()) == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_each_stack_has_its_own_depth() -> None:
    found = depths(["encoder.block.0.a", "encoder.block.4.a", "decoder.block.0.a", "decoder.block.1.a"])
    assert list(found.values()) == [0.0, 1.0, 0.0, 1.0]


def test_an_only_layer_is_the_last() -> None:
    """As mergekit counts a slice of one layer."""
    assert depths(["layers.0.weight"]) == {"layers.0.weight": 1.0}


def test_stated_depths_go_first_and_those_outside_touch_no_layer() -> None:
    assert depths(LLAMA, [("*.1.*", 0.9)])["model.layers.1.a"] == 0.9
    found = depths(LLAMA, (), [("*", 0.0)])
    assert found["model.norm.weight"] == 0.0
    assert found["model.layers.2.a"] == 1.0


def test_the_first_number_is_the_layer() -> None:
    place = place_of("model.layers.3.experts.7.weight")
    assert place is not None
    assert (place.stack, place.number, place.layer) == ("model.layers", 3, "model.layers.3")
    assert renumbered("model.layers.3.experts.7.weight", 12) == "model.layers.12.experts.7.weight"
    assert place_of("layer1.conv.weight") is None
    assert layer_of("0.weight") == "0"
    assert renumbered("norm.weight", 3) == "norm.weight"


def test_stacks_count_their_layers() -> None:
    assert stacks(LLAMA) == {"model.layers": 3}
