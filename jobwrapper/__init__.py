"""Everything of ours that runs at the job's account; see __main__.py."""
