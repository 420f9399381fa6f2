"""The HTTP protocol of the server, and the embedded PostgreSQL of `make run`."""
