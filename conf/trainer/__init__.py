"""Choices for `trainer=`."""
