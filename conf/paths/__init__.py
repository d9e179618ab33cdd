"""Choices for `paths=`."""
