"""A page of a run that is hardly trained, and a client of it."""

import pytest
import serving_pages
from fastapi.testclient import TestClient


@pytest.fixture(scope="session")
def page(tmp_path_factory):
    """What the page shows of a run about drinks."""
    return serving_pages.of_drinks(tmp_path_factory.mktemp("page") / "drinks")


@pytest.fixture
def client(page, tmp_path):
    """Asks for routes as the page does."""
    app = serving_pages.application(page, tmp_path)
    with TestClient(app, base_url="http://127.0.0.1:8000") as found:
        yield found
