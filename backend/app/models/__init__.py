"""The table. SQLModel is the single source of its shape and of every statement."""
