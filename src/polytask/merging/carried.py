"""What the output has beside its tensors: config, tokenizer and code of the donor, polytask's own description."""

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from polytask.checkpoints.directory import json_bytes
from polytask.merging.assembly import Assembly
from polytask.merging.inputs import Inputs
from polytask.merging.joined import joined
from polytask.merging.plan import MergePlan
from polytask.merging.union import FILE, OLDER, OTHERS, tokenizer_files

CARRIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "*.spm", "*.bpe")
NOT_CARRIED = (
    "*.index.json",
    "card.json",
    "adapter_config.json",
    "trainer_state.json",
    "all_results.json",
    "*_results.json",
    "interference.json",
)
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer")


def carried(plan: MergePlan, inputs: Inputs, assembly: Assembly) -> dict[str, bytes | Path]:
    """name -> content, or the file to copy."""
    _, donor = inputs.donor(plan)
    if donor.kind == "polytask":
        return joined(inputs, donor)
    files: dict[str, bytes | Path] = {}
    if donor.path.is_dir():
        for file in sorted(donor.path.iterdir()):
            wanted = any(fnmatch(file.name, pattern) for pattern in CARRIED)
            if file.is_file() and wanted and not any(fnmatch(file.name, pattern) for pattern in NOT_CARRIED):
                files[file.name] = file
    if assembly.alignment is not None:
        files = {name: file for name, file in files.items() if name not in (FILE, *OTHERS, *OLDER)}
        files |= tokenizer_files(inputs, assembly.alignment)
    if donor.config:
        changed = _config(donor.config, plan, assembly)
        if changed != donor.config:
            files["config.json"] = json_bytes(changed)
    return files


def _config(config: Mapping[str, Any], plan: MergePlan, assembly: Assembly) -> dict[str, Any]:
    """The donor's config with what the plan changes: the type, the number of layers, the size of the vocabulary."""
    changed = dict(config)
    for key in ("dtype", "torch_dtype"):
        if plan.dtype is not None and changed.get(key) is not None:
            changed[key] = plan.dtype
    if plan.slices:
        layers = sum(stop - start for start, stop in (next(iter(p.inputs.values())).layers for p in plan.slices))
        changed |= {key: layers for key in LAYER_COUNTS if key in changed}
    rows = _embedding_rows(assembly, changed.get("vocab_size"))
    if (plan.vocabulary != "error" or assembly.alignment is not None) and rows is not None:
        changed["vocab_size"] = rows
    if isinstance(changed.get("text_config"), Mapping):
        changed["text_config"] = _config(changed["text_config"], plan, assembly)
    return changed


def _embedding_rows(assembly: Assembly, stated: int | None) -> int | None:
    """How many rows the input embeddings have: the first matrix outside the layers whose name says so."""
    matrices = [job for job in assembly.jobs if len(job.shape) == 2]
    found = [job.shape[0] for job in matrices if "embed" in job.name and "position" not in job.name]
    return max(found, default=None) if stated is not None and found else None
