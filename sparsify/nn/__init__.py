"""Modules that live on in a cut model."""
