from pathlib import Path

import pytest

from polytask.core.errors import PolytaskError
from polytask.merging.references import Reference, locate, parse


def test_parts() -> None:
    assert parse("owner/name") == Reference("owner/name")
    assert parse("owner/name@main") == Reference("owner/name", "main")
    assert parse("a/b@v1+c/d@v2") == Reference("a/b", "v1", Reference("c/d", "v2"))
    assert str(parse("a/b@v1+c/d@v2")) == "a/b@v1+c/d@v2"


def test_a_path_that_exists_is_a_path_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "a+b@c"
    odd.mkdir()
    assert parse(str(odd)) == Reference(str(odd))
    assert locate(parse("a+b@c", [tmp_path]), [tmp_path]) == odd
    monkeypatch.chdir(tmp_path)
    assert locate(parse("a+b@c")) == Path("a+b@c")


@pytest.mark.parametrize("text", ["", "@v1", "a/b@", "a/b+", "+a/b"])
def test_a_missing_part_is_refused(text: str) -> None:
    with pytest.raises(PolytaskError, match="allowed: DIR, FILE, owner/name"):
        parse(text)


def test_a_missing_path_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(PolytaskError, match=r"models/a/b: no such directory or file \(looked at .*/models/a/b"):
        locate(parse("models/a/b"), [tmp_path])
    (tmp_path / "here").mkdir()
    with pytest.raises(PolytaskError, match="a path has no revisions"):
        locate(parse("here@v1", [tmp_path]), [tmp_path])


def test_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As huggingface_hub lays it out; nothing is asked of the network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    for reference in ("main", "v1"):
        (repository / "refs" / reference).write_text(commit)
    for text in ("owner/name", "owner/name@v1", f"owner/name@{commit}"):
        assert locate(parse(text), offline=True) == repository / "snapshots" / commit
    with pytest.raises(PolytaskError, match="neither a path nor in the local Hugging Face cache at revision v2"):
        locate(parse("owner/name@v2"), offline=True)
    with pytest.raises(PolytaskError, match=r"owner/other: neither .* get it with `hf download owner/other`"):
        locate(parse("owner/other"), offline=True)
