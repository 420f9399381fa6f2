"""Who may ask: bearer tokens, the keys they are verified with, and what is local to this machine."""
