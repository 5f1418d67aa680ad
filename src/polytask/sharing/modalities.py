"""Which tokens of a sequence belong to which modality."""

from polytask.core.errors import BadValue
from polytask.sharing.encoders.contract import Encoder


def modality_sizes(encoder: Encoder, sizes: tuple[int, ...] | None, kind: str) -> tuple[int, ...]:
    """The number of tokens of each modality, in order; None makes each token its own.

    Raises:
        BadValue: the encoder does not give a fixed number of tokens, or the sizes do not add up to it.
    """
    tokens = getattr(encoder, "tokens", None)
    if not isinstance(tokens, int):
        found = f"{type(encoder).__name__}, whose rows have any number of tokens"
        raise BadValue(f"sharing {kind!r}: the encoder", found, "one with the attribute `tokens`, as columns has")
    if sizes is None:
        return (1,) * tokens
    if sum(sizes) != tokens:
        raise BadValue(f"sharing {kind!r}: modalities", list(sizes), f"sizes that add up to the {tokens} tokens")
    return sizes
