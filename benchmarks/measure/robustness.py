"""How networks fare on corrupted images, and what their confidence is worth: the robustness card, recorded.

python benchmarks/measure robustness --models zoo/camvid-lite0.safetensors --data data/camvid --output FILE
"""

from __future__ import annotations

import time

from records import save

from litheseg.bundle.names import distinct_names
from litheseg.evaluation import measure_robustness
from litheseg.progress import shown
from measure.common import arguments, show


def main() -> None:
    """Parse, measure, print, write JSON."""
    parser = arguments(__doc__, threads=1)
    parser.add_argument("--models", nargs="+", required=True, help="model files and exports")
    parser.add_argument("--data", required=True, help="a folder of labelled images")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--widths", type=float, nargs="+")
    options = parser.parse_args()
    models, began = dict(zip(distinct_names(options.models), options.models, strict=True)), time.perf_counter()
    with shown():
        card = measure_robustness(
            models, options.data, images=options.images, widths=options.widths, threads=options.threads
        )
    pictures = card.images * (1 + len(card.corruptions) * len(card.strengths))
    seconds = time.perf_counter() - began
    rows = [
        {"model": network.model, "width": network.width, "precision": network.precision, **network.to_dict()}
        for network in card.networks
    ]
    cost = {"on": str(card), "pictures": pictures, "seconds": round(seconds, 1)}
    cost["ms_per_picture_and_network"] = round(1e3 * seconds / pictures / len(rows), 1)
    names = ("model", "width", "precision", "clean_miou", "miou")
    show([{name: row[name] for name in names} for row in rows], str(card))
    save(options, {"rows": rows, "cost": cost}, "torch", "numpy", "scipy", "pillow")
