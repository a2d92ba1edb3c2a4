"""How task losses are weighed; a module's name is its name in the settings."""
