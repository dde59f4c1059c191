"""Process families: which process belongs to which job, what a job uses, and how it is signalled."""
