"""What LAVIS itself needs to run: fixes, offline parts, the runner, the train command."""
