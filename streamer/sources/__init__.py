"""Where events are read from; a module here is a source."""
