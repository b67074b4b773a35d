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

from pathlib import Path
from typing import Any

from litheseg.cli.parsing import command
from litheseg.cli.printing import print_table
from litheseg.deploy import import_weights as room
from litheseg.report.card import width_rows, width_table

__all__ = ["import_weights"]


@command(room.import_weights)
def import_weights(*, output: Path, **options: Any) -> None:
    """Print the classes and the costs of each width.

    Args:
        output: the model file, .safetensors.
        **options: of `litheseg.deploy.import_weights`.
    """
    bundle = room.import_weights(output=output, **options)
    names = bundle.header.classes.names
    print(f"{bundle.path}: {options['model']}, {len(names)} classes ({names[0]} ... {names[-1]})")
    print_table(width_table(width_rows(bundle.header)))
