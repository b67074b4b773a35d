"""From a trained model to files that run elsewhere."""

from __future__ import annotations

from litheseg.deploy.bundle import Bundle, load_bundle, save_bundle
from litheseg.deploy.header import FORMAT_VERSION, BundleHeader

__all__ = ["FORMAT_VERSION", "Bundle", "BundleHeader", "load_bundle", "save_bundle"]
