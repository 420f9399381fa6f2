"""A database that closes idle connections and then starts slowly."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.history import REPEATABLE, History
from tests.faults import fault_proxy
from tests.service import Service
from tests.support import until

pytestmark = pytest.mark.ci


@pytest.mark.parametrize("delay", [0.3, 8])
async def test_a_repeatable_request_gets_no_error_from_a_slow_database(
    tmp_path: Path,
    dsn: str,
    new_user: Callable[[], str],
    delay: float,
    rounds: int,
    record_property: Callable[[str, object], None],
) -> None:
    history = History([new_user(), new_user()], REPEATABLE)
    # Fewer connections than clients, so that some wait for those that open a connection.
    with (
        fault_proxy(dsn) as network,
        Service(tmp_path, {"DATABASE_URL": network.dsn, "DATABASE_POOL_SIZE": "3"}) as service,
    ):
        service.ready()
        for _ in range(rounds):
            network.delay = delay
            network.close()
            await until(lambda: network.connections == 0)
            async with history.recording(service.url):
                await history.cycles(1)

    record_property(f"{rounds} cold starts of {delay} s", history.summary())
    assert history.unavailable == 0
    assert history.faults() == []
