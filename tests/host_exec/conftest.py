"""What tests of the runner's programs take."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.host_exec.runs import Ahead, Done, Run


@pytest.fixture(scope="session")
def ahead(request: pytest.FixtureRequest) -> Iterator[Ahead]:
    ahead = Ahead(request.session.items)
    yield ahead
    ahead.stop()


@pytest.fixture
def done(run: Run, ahead: Ahead, request: pytest.FixtureRequest) -> Done[str]:
    """How the run ended that is the test's parameter."""
    return ahead.done(request.node)
