"""Six task endpoints per user, on FastAPI, SQLModel and asyncpg over PostgreSQL."""

__version__ = "0.1.0"
