"""Everything that is started: the command line and the launcher."""
