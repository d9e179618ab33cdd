"""Choices for `code=`."""
