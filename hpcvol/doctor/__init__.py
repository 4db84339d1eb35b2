"""What a machine, a job or a set of hosts offers to training, what is missing, and what to type about it."""
