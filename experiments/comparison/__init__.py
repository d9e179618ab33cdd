"""Runs side by side: reading them, statistics over seeds, tables, figures, a page and a W&B Report."""
