"""The embedded demo: an experiment and training conversations of our own writing."""
