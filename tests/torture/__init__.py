"""Torture: kills, power cuts, failing calls, simulations and fuzzing for as long as one likes."""
