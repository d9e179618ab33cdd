"""Choices for `model=`."""
