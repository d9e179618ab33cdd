"""Every scheme as the real training command, on hosts of its own with shaped links: time and bytes to a target."""
