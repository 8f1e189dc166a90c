"""Comparing variants of a recipe over seeds: plan, run what is missing, summarise, show."""
