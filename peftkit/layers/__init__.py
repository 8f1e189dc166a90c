"""Modules that peft lacks, and what is known of a model from its structure alone."""
