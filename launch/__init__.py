"""What starts jobs, here or on a cluster: the command line, submission, the demo."""
