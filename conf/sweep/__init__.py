"""Sweeps: several runs from one word."""
