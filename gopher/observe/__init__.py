"""Observation: the accounts of a run, and what shows them to people and programs."""
