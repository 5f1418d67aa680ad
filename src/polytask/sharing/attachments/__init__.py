"""Attachments: what methods add at the representation that tasks share."""
