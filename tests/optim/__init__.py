"""The optimizer, schedules, clipping."""
