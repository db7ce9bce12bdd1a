"""Modules that hold packed weights."""
