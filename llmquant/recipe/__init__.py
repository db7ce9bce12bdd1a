"""Recipes (what a user writes) and plans (what a recipe means for one model)."""
