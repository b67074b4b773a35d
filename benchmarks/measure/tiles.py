"""How far labels made in tiles are from those of the whole image, and whether seams show.

Pictures of 1440x1920 pixels: photos enlarged, and mosaics of photos as small as the networks were trained on. Per
picture: the share of pixels that get the label of the whole image, in all and where tiles overlap; and the share of
pixels whose neighbour has another label, along the worst line within the overlaps, tiled and whole. A visible seam
would be a line where tiled labels change more often.

    python benchmarks/measure tiles --bundles runs/*/model.safetensors --images data/camvid/val --output FILE
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from records import report, save

from litheseg.masks.reading import read_image
from litheseg.runtime.predictor import Predictor
from litheseg.runtime.tiles import predict_tiles, tile_starts
from measure.common import arguments, show

SIZE = (1440, 1920)
TILES = ((1024, 256), (512, 128))
KINDS = ("enlarged", "mosaic")


def main() -> None:
    """Parse, measure, print, write JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--bundles", nargs="+", required=True, help="models")
    parser.add_argument("--images", required=True, help="a folder of photos")
    parser.add_argument("--count", type=int, default=1, help="pictures of each kind")
    options = parser.parse_args()
    rows = report(options.output).get("rows", []) if options.output else []
    for bundle in options.bundles:
        for kind in KINDS:
            if any(row["run"] == Path(bundle).parent.name and row["pictures"] == kind for row in rows):
                continue  # a run that was stopped goes on
            rows += measure(Path(bundle), kind, options)
            show(rows[-len(TILES) :], "shares of pixels")
            save(options, {"rows": rows}, "torch", "numpy")


def measure(bundle: Path, kind: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each kind of tile, averaged over the pictures."""
    predictor = Predictor(bundle, size=None)
    network, header = logits_of(predictor), predictor.header
    found: dict[tuple[int, int], list[tuple[float, ...]]] = {tile: [] for tile in TILES}
    for number in range(options.count):
        image = picture(kind, sorted(Path(options.images).iterdir()), number, header.size)
        whole = predict_tiles(network, image, tile=SIZE)
        for side, overlap in TILES:
            labels = predict_tiles(network, image, tile=(side, side), overlap=overlap)
            found[side, overlap].append(compare(labels, whole, side, overlap))
    names = ("agreement", "agreement_in_overlaps", "worst_change", "worst_change_whole")
    first = {"run": bundle.parent.name, "model": header.architecture["name"], "pictures": kind}
    return [
        first | {"tile": side, "overlap": overlap} | dict(zip(names, np.mean(values, 0).round(5).tolist(), strict=True))
        for (side, overlap), values in found.items()
    ]


def logits_of(predictor: Predictor) -> Any:
    """What the tiles are handed to."""
    return lambda pixels: predictor.outputs_rgb(pixels)["logits"][0].numpy()


def picture(kind: str, files: list[Path], number: int, trained: tuple[int, int]) -> np.ndarray:
    """uint8, 1440 x 1920 x 3."""
    if kind == "enlarged":
        photo = Image.fromarray(read_image(files[number * len(files) // 5]))
        return np.asarray(photo.resize(SIZE[::-1], Image.Resampling.BICUBIC))
    rows, columns = SIZE[0] // trained[0], SIZE[1] // trained[1]
    drawn = np.random.default_rng(number).choice(len(files), (rows, columns))
    photos = [[Image.fromarray(read_image(files[index])).resize(trained[::-1]) for index in row] for row in drawn]
    return np.concatenate([np.concatenate([np.asarray(photo) for photo in row], 1) for row in photos], 0)


def compare(labels: np.ndarray, whole: np.ndarray, tile: int, overlap: int) -> tuple[float, ...]:
    """As in a row."""
    same, shared, changes = labels == whole, np.zeros(labels.shape, bool), []
    for axis in (0, 1):
        for start, stop in pairs(labels.shape[axis], tile, overlap):
            np.moveaxis(shared, axis, 0)[start:stop] = True
            changes.append([rough(array, axis)[start:stop].max() for array in (labels, whole)])
    tiled, plain = np.max(changes, axis=0)
    return float(same.mean()), float(same[shared].mean()), float(tiled), float(plain)


def pairs(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """What neighbouring tiles share."""
    starts = tile_starts(length, tile, overlap)
    return [(after, before + tile) for before, after in pairwise(starts)]


def rough(labels: np.ndarray, axis: int) -> np.ndarray:
    """Per line across `axis`, the share of pixels whose label the next line has not."""
    return (np.diff(labels.astype(np.int16), axis=axis) != 0).mean(axis=1 - axis)
