"""Scores: how much each unit matters."""
