"""Layers: modules with parameters of their own."""
