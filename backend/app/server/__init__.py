"""The HTTP protocol and the processes of the server, and the embedded PostgreSQL of `make run`."""
