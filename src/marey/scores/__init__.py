"""Scores of videos become better scores, and labels: tables, ensembles, votes, selections."""
