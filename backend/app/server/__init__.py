"""What stands between the socket and HTTP, and the embedded PostgreSQL of `make run`."""
