"""Versions of the image retrieval interface."""
