"""Built-in rewards; each folder has a README: what it measures, its range, how it can be hacked."""
