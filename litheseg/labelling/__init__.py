"""The labelling loop: a model labels images; those worth correcting go to an annotation tool and return as data."""

from __future__ import annotations

from litheseg.labelling.corrected import Imported, import_labels
from litheseg.labelling.pseudo import EXPORTS, PseudoLabels, pseudo_label

__all__ = ["EXPORTS", "Imported", "PseudoLabels", "import_labels", "pseudo_label"]
