"""Snapshots: the coordinator of cuts, and what a snapshot consists of."""
