"""Copies of some of an encoder's layers, one for each domain; a task's domain says which copy its rows take."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from polytask.core.errors import BadValue
from polytask.sharing.contract import MakeEncoder, ReadsApart
from polytask.sharing.groups import group_of
from polytask.sharing.layers import NamedModules, TaskModules
from polytask.sharing.spec import SharingOptions


class DomainExperts(ReadsApart):
    """One encoder whose parameters named in `own` exist once for each group of tasks; the rest is shared. All copies
    start from the encoder's own values, pretrained or not.

    Source: Hallee, Kapur, Patel, Gleghorn and Khomtchouk 2024, arXiv:2401.15713: the feed-forward layers of a
    pretrained encoder copied into an expert a domain, with enforced routing.
    Departures: the domain is the task's group, in the recipe; which layers are copied is said by their names; no
    token that names the domain.
    Cost: a pass through the encoder for each group of the named tasks.
    """

    class Options(SharingOptions):
        """Attributes: groups, name -> its tasks (None: each task is one); own, patterns of the names of parameters, as
        `layers.2.*` or `*.intermediate.*`.
        """

        kind: Literal["domain_experts"] = "domain_experts"
        groups: dict[str, tuple[str, ...]] | None = None
        own: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)

    reading = "sharing 'domain_experts' reads the inputs once a domain"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.group_of = group_of(options.groups or {}, list(tasks), options.kind, alone=options.groups is None)
        self.encoder = make_encoder()
        self.width = self.encoder.width
        names = [name for name, _ in self.encoder.named_parameters()]
        for pattern in options.own:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise BadValue("sharing 'domain_experts': own", pattern, f"a pattern of {', '.join(names)}")
        self.own = [name for name in names if any(fnmatchcase(name, pattern) for pattern in options.own)]
        self.experts: NamedModules[Copies] = TaskModules() if options.groups is None else NamedModules()
        for group in dict.fromkeys(self.group_of.values()):
            self.experts[group] = Copies(self.encoder, self.own)
        for name in self.own:
            _leave_place(self.encoder, name)

    def forward(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        found = {
            group: functional_call(self.encoder, self.experts[group].named(self.own), (inputs,))
            for group in dict.fromkeys(self.group_of[task] for task in tasks)
        }
        return {task: found[self.group_of[task]] for task in tasks}


def _leave_place(encoder: nn.Module, name: str) -> None:
    """Puts an empty buffer where the parameter was: each domain's pass has its own there."""
    parent, _, last = name.rpartition(".")
    module = encoder.get_submodule(parent)
    delattr(module, last)
    module.register_buffer(last, torch.empty(0), persistent=False)


class Copies(nn.Module):
    """A domain's own values of some of the encoder's parameters."""

    def __init__(self, encoder: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.values = nn.ParameterList(encoder.get_parameter(name).detach().clone() for name in names)

    def named(self, names: list[str]) -> dict[str, Any]:
        return dict(zip(names, self.values, strict=True))
