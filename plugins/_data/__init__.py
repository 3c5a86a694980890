"""Bundled demo data: see ATTRIBUTION.md."""
