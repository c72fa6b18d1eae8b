"""A page of whole runs: their episodes with filters, and their curves."""
