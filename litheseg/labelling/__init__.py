"""The labelling loop: a model labels, the images worth a correction go to an annotation tool, and come back as data."""

from __future__ import annotations

from litheseg.labelling.corrected import Imported, import_labels
from litheseg.labelling.pseudo import EXPORTS, PseudoLabels, pseudo_label

__all__ = ["EXPORTS", "Imported", "PseudoLabels", "import_labels", "pseudo_label"]
