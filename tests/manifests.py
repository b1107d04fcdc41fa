"""Manifests from text in one step, as the server reads them in two."""

from __future__ import annotations

from workflows.specs.manifest import Manifest, load_json, load_yaml, parse


def parse_yaml(text: str | bytes) -> Manifest:
    document = load_yaml(text)
    return parse(document.data, document.faults)


def parse_json(text: str | bytes) -> Manifest:
    document = load_json(text)
    return parse(document.data, document.faults)
