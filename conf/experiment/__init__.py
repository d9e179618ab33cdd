"""Choices for `experiment=`."""
