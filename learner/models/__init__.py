"""The architectures; a module's name is its name in the settings."""
