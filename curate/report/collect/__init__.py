"""A finished run → what its report shows (content.py), section by section."""
