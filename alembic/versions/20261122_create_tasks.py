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
    """Create the table, its rules and the index of the default list order.

    The owner leads every key: it keeps users apart in storage and one user's rows together, and
    lets the table be partitioned or distributed by `user_id` later.
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
