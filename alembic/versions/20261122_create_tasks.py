"""Create tasks.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, its constraints and the index of the default list order.

    Every key starts with `user_id`. This stores the rows of one user together, apart from those of
    other users, and allows partitioning or distribution by `user_id` later.
    """
    op.create_table(
        "tasks",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("completed", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "id", name="pk_tasks"),
        sa.CheckConstraint("user_id COLLATE \"C\" ~ '^[A-Za-z0-9_|.:@+=~-]{1,128}$'", name=op.f("ck_tasks_user_id")),
        sa.CheckConstraint(
            "char_length(title) <= 200 AND title COLLATE \"C\" ~ '[^[:space:]]'", name=op.f("ck_tasks_title")
        ),
        sa.CheckConstraint("char_length(description) <= 5000", name=op.f("ck_tasks_description")),
    )
    op.create_index(
        "ix_tasks_user_id_created_at_id",
        "tasks",
        ["user_id", sa.text("created_at DESC"), sa.text("id DESC")],
    )


def downgrade() -> None:
    """Drop the table with all tasks."""
    op.drop_table("tasks")
