"""The programmes of docs/frameworks.md end with the weights of a plain loop."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import polytask
from pages import blocks

PAGE = Path(__file__).resolve().parent.parent / "docs" / "frameworks.md"
LIBRARIES = {"with_accelerate": "accelerate", "with_lightning": "pytorch_lightning", "with_trainer": "transformers"}
PLAIN = """
import torch
from two_tasks import new_model, rows
import polytask

model = new_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
balancer = polytask.balancer("upgrad", tasks=["left", "right"])
for epoch in range(2):
    for batch in torch.utils.data.DataLoader(rows(), batch_size=16):
        optimizer.zero_grad()
        balancer.backward(model(**batch), model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
"""


def trained(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """What `model` is when the programme ends, in a process of its own: frameworks change global settings."""
    source = str(Path(polytask.__file__).parent.parent)
    code = f"""
import sys
sys.path[:0] = [{str(folder)!r}, {source!r}]
import torch
from {name} import model
torch.save(model.state_dict(), {name + ".pt"!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / f"{name}.pt", weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frameworks")
    for block in blocks(PAGE):
        if block.file_name is not None:
            (folder / block.file_name).write_text(block.text)
    (folder / "plain.py").write_text(PLAIN)
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, torch.Tensor]:
    return trained(folder, "plain")


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_framework_s_loop_is_a_plain_one(folder: Path, plain: dict[str, torch.Tensor], name: str) -> None:
    pytest.importorskip(LIBRARIES[name])
    found = trained(folder, name)
    for key, value in plain.items():
        torch.testing.assert_close(found[key], value)


def test_every_programme_of_the_page_is_run() -> None:
    named = [block.file_name for block in blocks(PAGE) if block.file_name is not None]
    assert named == ["two_tasks.py", *(f"{name}.py" for name in LIBRARIES)]
