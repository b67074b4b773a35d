r"""Make a model file of weights from elsewhere.

Tensors are matched by order, shape and kind, names do not matter. Nothing in the file is run. What weights expect of
images stands in no file: ERFNet's published ones take RGB in [0, 1] (--normalisation none) at 512x1024, and have a 20th
output for what is not labelled (--extra-class void).

Examples:
  litheseg import-weights erfnet_pretrained.pth --model erfnet --classes cityscapes --extra-class void \
      --normalisation none --output erfnet.safetensors
  litheseg import-weights light.pth --model "erfnet-d*" --classes names.yaml --normalisation imagenet \
      --size 360x480 --output light.safetensors                (the quotes keep the shell from reading the *)
  litheseg import-weights mine.pth --model erfnet --classes road,car,sky --mean .5,.5,.5 --std .25,.25,.25 \
      --source-note "trained by A. Person, 2019" --licence CC-BY-4.0 --output mine.safetensors
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from litheseg.cli.parsing import command
from litheseg.cli.printing import print_table
from litheseg.deploy import import_weights as room
from litheseg.report.card import width_rows, width_table
from litheseg.values import Numbers, YamlMapping

__all__ = ["import_weights"]


@command(room.import_weights, without=("path",))
def import_weights(
    weights: Path,
    *,
    output: Path,
    model: str,
    args: YamlMapping | None = None,
    classes: str,
    extra_class: Sequence[str] = (),
    normalisation: str | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    **options: Any,
) -> None:
    """Print the classes and the costs of each width.

    Args:
        weights: a state dict: .pth, .pt, ... or .safetensors.
        output: the model file, .safetensors.
        model: the architecture, see `litheseg models`.
        args: its arguments, such as {up: bilinear}.
        classes: camvid, cityscapes or voc, a file, or names with commas between them.
        extra_class: an output behind these; may be given several times.
        normalisation: what the weights expect of images: imagenet or none.
        mean: instead, of images in [0, 1], one number for each of red, green and blue.
        std: likewise.
        **options: of `litheseg.deploy.import_weights`.
    """
    means, stds = room.read_normalisation(normalisation, mean, std)
    known = room.read_classes(classes, extra_class)
    bundle = room.import_weights(
        weights, output, model=model, args=args, classes=known, mean=means, std=stds, **options
    )
    print(f"{bundle.path}: {model}, {len(known)} classes ({known.names[0]} ... {known.names[-1]})")
    print_table(width_table(width_rows(bundle.header)))
