"""The `headrace` command: one file per subcommand."""
