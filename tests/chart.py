"""deploy/chart as Helm renders it, without a cluster. `python -m tests.chart` prints deploy/kubernetes.yaml."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

CHART: Final = Path(__file__).parents[1] / "deploy/chart"
_HEAD: Final = """\
# deploy/chart with its default values, for `kubectl apply`. docs/kubernetes.md shows how to use it.
# `make kubernetes` writes this file: change the chart instead.
"""
_ORDER: Final = ("ServiceAccount", "PodDisruptionBudget", "Service", "Deployment", "Ingress")


def helm() -> Any:
    """Returns the library of Helm, which only `make ci` installs."""
    return import_module("helm_python")


def render(values: dict[str, Any] | None = None) -> str:
    """Returns all documents, in an order in which a cluster can create them. Raises HelmError for wrong values."""
    with helm().Chart.load(CHART) as chart:
        rendered = chart.render(values, name="tasks-api").values()
    documents = sorted((text for text in rendered if "\nkind: " in text), key=lambda text: _ORDER.index(_kind(text)))
    return "".join(f"---\n{document.strip()}\n" for document in documents)


def _kind(document: str) -> str:
    return document.partition("\nkind: ")[2].partition("\n")[0]


def parse(text: str) -> dict[str, Any]:
    """Returns the documents by their kind."""
    return {document["kind"]: document for document in YAML(typ="safe").load_all(text)}


def manifest() -> str:
    """Returns the text of deploy/kubernetes.yaml."""
    return _HEAD + render()


if __name__ == "__main__":
    sys.stdout.write(manifest())
