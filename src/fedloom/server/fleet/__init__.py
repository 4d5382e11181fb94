"""Agents and their work: sessions, dispatch of groups, open exchanges, results, payloads."""
