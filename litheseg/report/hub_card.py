"""The card of a model on the Hugging Face hub: what the hub reads, as YAML, and the model card below it.

The fields are those of huggingface.co/docs/hub/model-cards: licence, library, task, data sets, and the mIoU of each
width as results.

Usage:
    >>> text = hub_card(load_bundle("model.safetensors").header, "owner/name", licence="apache-2.0")
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from litheseg.bundle.header import BundleHeader
from litheseg.report.card import card_sections, to_markdown, width_rows

__all__ = ["hub_card"]


def hub_card(header: BundleHeader, repository: str, *, licence: str = "other", more: str = "") -> str:
    """The text of a repository's README.md.

    Args:
        header: of the model.
        repository: OWNER/NAME.
        licence: the hub's name of the model's licence, such as apache-2.0; other: none of those that it knows.
        more: Markdown that follows.
    """
    name = repository.partition("/")[2]
    head = yaml.safe_dump(_metadata(header, name, licence), sort_keys=False, allow_unicode=True)
    card = to_markdown(name, card_sections(header, name=name, file=f"hf:{repository}"))
    return f"---\n{head}---\n\n{card}" + (f"\n{more.strip()}\n" if more else "")


def _metadata(header: BundleHeader, name: str, licence: str) -> dict[str, Any]:
    data = str(header.provenance.get("data", ""))
    kind = re.sub(r"[^a-z0-9.-]+", "-", data.lower()).strip("-.")
    facts: dict[str, Any] = {"license": licence.lower()}
    if licence.lower() == "other":
        facts["license_name"] = "see-model-card"
    facts |= {"library_name": "litheseg", "pipeline_tag": "image-segmentation"}
    facts["tags"] = ["semantic-segmentation", "slimmable", str(header.architecture["name"])]
    if kind:
        facts["datasets"] = [kind]
    scores = {float(width): entry["miou"] for width, entry in header.metrics.items() if entry.get("miou") is not None}
    if scores and kind:
        metrics = [
            {"type": "mean_iou", "name": f"mIoU, width {width:g}", "value": round(scores[width], 4)}
            for width in sorted(scores, reverse=True)
        ]
        worst = [(row.width, row.worst) for row in width_rows(header) if row.worst]
        metrics += [
            {
                "type": "mean_iou",
                "name": f"IoU of the worst class, {found[0]}, width {width:g}",
                "value": round(found[1], 4),
            }
            for width, found in worst
        ]
        task = {"type": "image-segmentation", "name": "Semantic segmentation"}
        result = {"task": task, "dataset": {"type": kind, "name": data}, "metrics": metrics}
        facts |= {"metrics": ["mean_iou"], "model-index": [{"name": name, "results": [result]}]}
    return facts
