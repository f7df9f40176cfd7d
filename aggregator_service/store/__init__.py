"""What survives the process: state in SQLite, adapters as content-addressed files."""
