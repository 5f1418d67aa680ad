"""Where a model of a plan is: `DIR`, `FILE`, or `owner/name@revision` from the Hugging Face cache; then `+adapter`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polytask.core.errors import BadValue, MissingInput, nearest_beside

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
"""What is fetched of a hub repository: no pickles and no code."""


@dataclass(frozen=True)
class Reference:
    """`adapter` is a LoRA on top of the model."""

    model: str
    revision: str | None = None
    adapter: "Reference | None" = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.model}{revision}{f'+{self.adapter}' if self.adapter else ''}"


def parse(text: str, places: Sequence[Path] = ()) -> Reference:
    """The parts of a reference. What exists as a path is one, whatever characters are in its name.

    >>> parse("owner/model@v1+owner/adapter")
    Reference(model='owner/model', revision='v1', adapter=Reference(model='owner/adapter', revision=None, adapter=None))
    """
    if text and _existing(text, places) is not None:
        return Reference(text)
    model, plus, adapter = text.partition("+")
    name, at, revision = (model, "", "") if model and _existing(model, places) is not None else model.rpartition("@")
    if not at:
        name, revision = model, ""
    if not name or (at and not revision) or (plus and not adapter):
        raise BadValue("a model", text, "DIR, FILE, owner/name, owner/name@revision, each with +adapter")
    return Reference(name, revision or None, parse(adapter, places) if adapter else None)


def locate(reference: Reference, places: Sequence[Path] = (), *, offline: bool = False) -> Path:
    """The directory or file of a reference, without its adapter.

    Args:
        reference: what to find.
        places: folders from which a relative path starts, in order.
        offline: never asks the hub, only its cache on this machine.
    """
    found = _existing(reference.model, places)
    if found is not None:
        if reference.revision is not None:
            raise BadValue("the revision", reference.revision, "none: a path has no revisions", str(found))
        return found
    if reference.model.startswith((".", "/", "~")) or reference.model.count("/") != 1:
        looked = ", ".join(str(Path(place) / reference.model) for place in places) or reference.model
        near = nearest_beside(Path(places[0] if places else "") / reference.model)
        raise MissingInput(f"{reference.model}: no such directory or file (looked at {looked}){near}")
    return _from_hub(reference, offline)


def _existing(model: str, places: Sequence[Path]) -> Path | None:
    path = Path(model).expanduser()
    tried = [path] if path.is_absolute() or not places else [Path(place) / path for place in places]
    return next((candidate for candidate in tried if candidate.exists()), None)


def found_path(text: str, places: Sequence[Path] = ()) -> Path:
    """A file of a plan that is no model; MissingInput where it is not there."""
    found = _existing(text, places)
    if found is None:
        looked = ", ".join(str(Path(place) / text) for place in places) or text
        raise MissingInput(f"{text}: no such file (looked at {looked})")
    return found


def _from_hub(reference: Reference, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, revision = reference.model, reference.revision
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=PATTERNS))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        if offline or isinstance(error, HFValidationError):
            at = f" at revision {revision}" if revision else ""
            raise MissingInput(
                f"{name}: neither a path nor in the local Hugging Face cache{at}; get it with `hf download {name}`"
                + (f" --revision {revision}" if revision else "")
            ) from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MissingInput(f"{name}: could not be fetched from the hub ({str(error).splitlines()[0]})") from None
