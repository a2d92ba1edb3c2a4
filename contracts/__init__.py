"""The types that cross a boundary between rooms."""
