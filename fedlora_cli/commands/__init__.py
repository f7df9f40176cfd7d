"""One file per command. Importing one costs nothing: torch, grpc and services come when called."""
