"""Choices for `callbacks=`."""
