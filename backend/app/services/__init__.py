"""The statements and the rules. Knows nothing of HTTP."""
