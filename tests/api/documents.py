"""What every description has to hold to, whichever standard it follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def dangling(document: dict[str, Any]) -> list[str]:
    """The references that lead nowhere."""
    return [reference for reference in references(document) if not _leads_somewhere(document, reference)]


def references(node: Any) -> Iterator[str]:
    """Every `$ref` below a node."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from references(each)


def _leads_somewhere(document: Any, reference: str) -> bool:
    assert reference.startswith("#/")
    for step in reference[2:].split("/"):
        if not isinstance(document, dict) or step not in document:
            return False
        document = document[step]
    return True
