"""Look into data and models: duplicates among images."""
