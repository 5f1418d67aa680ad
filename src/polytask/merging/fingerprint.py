"""One number for everything that decides a merge's bytes: an interrupted merge goes on only where it is the same."""

import hashlib
import inspect
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from polytask import __version__
from polytask.core.blocks import BLOCK
from polytask.merging.contract import Pipeline, Step
from polytask.merging.jobs import Source
from polytask.merging.layout import Shard


def fingerprint_of(shards: Sequence[Shard], seed: int, measure: bool) -> str:
    """Of the sources' files, the plan of every tensor, the code of its methods, the layout and the seed."""
    known: dict[int, str] = {}  # one model's weights are the source of many tensors

    def source(of: Source | None) -> Any:
        if of is None:
            return None
        if id(of.weights) not in known:
            known[id(of.weights)] = of.weights.fingerprint()
        return [known[id(of.weights)], of.name]

    facts = [
        [
            shard.file,
            dict(shard.metadata),
            [
                [
                    [job.name, list(job.shape), str(job.dtype), job.group, job.depth],
                    [[task, source(of)] for task, of in job.inputs.items()],
                    source(job.base),
                    [[task, source(of)] for task, of in job.masks.items()],
                    source(job.mask),
                    _pipeline(job.pipeline) if isinstance(job.pipeline, Pipeline) else repr(job.pipeline),
                ]
                for job in shard.jobs
            ],
        ]
        for shard in shards
    ]
    content = json.dumps([__version__, BLOCK, seed, measure, facts], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def _pipeline(pipeline: Pipeline) -> list[Any]:
    return [pipeline.scale, pipeline.groups, [_step(step) for step in pipeline.steps]]


def _step(step: Step) -> list[Any]:
    parameters = {name: value if isinstance(value, dict) else str(value) for name, value in step.parameters.items()}
    return [step.spec.name, parameters, _code(step.spec.function)]


@cache
def _code(function: Any) -> str:
    """Of the file that defines it: a rule given to `--load` may have been edited since."""
    file = inspect.getsourcefile(function)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).exists() else ""
