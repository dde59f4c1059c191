"""The embedded pool: collector, queue, matching, the schedd's and the shadow's roles, and the `sailplane` command."""
