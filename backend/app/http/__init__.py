"""The HTTP layer between the server and the routes: authorization, request reading, errors, headers."""
