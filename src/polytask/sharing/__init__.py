"""Sharing architectures on any encoder: what tasks have in common and what is their own.

A model is built by `build_model` and called with `(inputs, tasks=None)`; it computes only what the named tasks need.
"""

import importlib
from typing import Any

from polytask.sharing.names import ATTACHMENTS, ENCODERS, SHARING
from polytask.sharing.spec import (
    AttachedSpec,
    AttachmentOptions,
    Attachments,
    EncoderOptions,
    ModelSpec,
    SharingOptions,
)

_LAZY = {  # these import torch, which reading a recipe does not need
    "Attachment": "polytask.sharing.attachments.contract",
    "Branches": "polytask.sharing.branches",
    "MultiTaskModel": "polytask.sharing.model",
    "attachment": "polytask.sharing.attachments.contract",
    "build_model": "polytask.sharing.model",
    "describe": "polytask.sharing.model",
    "hidden_states_pyramid": "polytask.sharing.encoders.levels",
    "read_examples": "polytask.sharing.example_embeddings",
    "timm_pyramid": "polytask.sharing.encoders.levels",
}

__all__ = [
    "ATTACHMENTS",
    "ENCODERS",
    "SHARING",
    "AttachedSpec",
    "Attachment",
    "AttachmentOptions",
    "Attachments",
    "Branches",
    "EncoderOptions",
    "ModelSpec",
    "MultiTaskModel",
    "SharingOptions",
    "attachment",
    "build_model",
    "describe",
    "hidden_states_pyramid",
    "read_examples",
    "timm_pyramid",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
