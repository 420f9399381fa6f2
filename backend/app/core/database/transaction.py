"""A Session's transaction: committed at the end of its block, with errors that quote no values."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IllegalStateChangeError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.exc import StatementError as SQLAlchemyStatementError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm.exc import StaleDataError
from sqlmodel.ext.asyncio.session import AsyncSession

from app.core.database.faults import refused_value, translate_error
from app.core.errors import ConflictError, OutcomeUnknownError, StatementError, UnavailableError

_CLOSE_ATTEMPTS: Final = 400  # times _CLOSE_PAUSE: the longest time to get a connection
_CLOSE_PAUSE: Final = 0.05  # seconds between attempts to close a session
_ERRORS_WITH_VALUES: Final = (SQLAlchemyStatementError, PendingRollbackError)  # their texts quote SQL and values


@asynccontextmanager
async def open_session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """Yields a session and closes it at the end. Closes the connection too if a task of the block still uses it."""
    session = AsyncSession(engine, expire_on_commit=False, close_resets_only=False)
    try:
        async with session:
            yield session
    except IllegalStateChangeError:  # a session cannot be closed while a task waits for its connection
        for _ in range(_CLOSE_ATTEMPTS):  # pragma: no branch  # the wait for a connection ends earlier
            with suppress(IllegalStateChangeError):
                await session.invalidate()
                break
            await asyncio.sleep(_CLOSE_PAUSE)
        raise


@asynccontextmanager
async def transaction(session: AsyncSession) -> AsyncIterator[None]:
    """Commit at the end of the block, or roll back. Replaces SQLAlchemy's errors, because their texts quote values."""
    committed = False

    def note_commit(inner: Any) -> None:
        nonlocal committed
        committed = committed or not inner.in_nested_transaction()

    event.listen(session.sync_session, "after_commit", note_commit)
    try:
        yield
        await session.commit()
    except BaseException as error:
        with suppress(UnavailableError, SQLAlchemyError):
            await session.rollback()
        if committed and isinstance(error, UnavailableError):  # the block has already committed a part
            raise OutcomeUnknownError from error.__cause__
        if isinstance(error, _ERRORS_WITH_VALUES):
            raise _without_values(error).with_traceback(error.__traceback__) from None
        _strip_values_from_causes(error)
        if isinstance(error, StaleDataError):  # another request has changed or deleted the row since it was read
            raise ConflictError().because("StaleDataError") from error
        raise


def _without_values(error: BaseException) -> Exception:
    """Returns an error to raise in place of one whose text quotes SQL and values."""
    if isinstance(error, DBAPIError):
        cause = error.driver_exception
        return refused_value(cause) or translate_error(cause, reads=True, closed=False)
    return _named(error)


def _named(error: BaseException) -> StatementError:
    """Returns a StatementError with only the class and the SQLSTATE of the wrapped error."""
    return StatementError(getattr(error, "orig", None) or error)


def _strip_values_from_causes(error: BaseException) -> None:
    """Replace the causes and contexts of `error` that quote values, because the log shows them."""
    inner: BaseException | None = error
    seen: list[BaseException] = []
    while inner and inner not in seen:  # causes may form a cycle
        seen.append(inner)
        if isinstance(inner.__context__, _ERRORS_WITH_VALUES):
            inner.__context__ = _named(inner.__context__)
        if isinstance(inner.__cause__, _ERRORS_WITH_VALUES):
            inner.__cause__ = _named(inner.__cause__)
        inner = inner.__cause__ or inner.__context__
