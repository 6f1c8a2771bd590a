"""Runs sweeps: builds micro-batches from integers and drives their coroutines along the schedule."""
