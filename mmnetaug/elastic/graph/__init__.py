"""Reads the channel structure of a plain network: its exported graph, one rule per operator."""
