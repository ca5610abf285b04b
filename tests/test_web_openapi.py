"""The gateway against its own OpenAPI document: what schemathesis makes up gets the answers that it promises."""

from __future__ import annotations

import pytest
import schemathesis
from fakes import ColourRuntime, ListSource
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from server_process import running

from serving.client import SearchClient
from serving.index_job import build_index

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    index = tmp_path_factory.mktemp("served")
    build_index(ColourRuntime(), ListSource(), index)
    with running(index, "page") as (process, address):
        page = process.stdout.readline().strip().removeprefix("page on ")
        with SearchClient(address) as client:
            client.wait_until_ready(30)
        yield schemathesis.openapi.from_url(f"{page}/v1/openapi.json")


OPERATIONS = [
    ("/v1/search", "GET"),
    ("/v1/search", "POST"),
    ("/v1/images/{image_id}", "GET"),
    ("/v1/images/{image_id}/thumbnail", "GET"),
    ("/v1/images/{image_id}/content", "GET"),
    ("/v1/status", "GET"),
]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_the_gateway_answers_as_its_description_promises(path, method, described):
    @given(described[path][method].as_strategy())
    @settings(max_examples=40, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def answered(case):
        case.call_and_validate(checks=CHECKS)

    answered()


def test_every_operation_is_tried(described):
    found = {(result.ok().path, result.ok().method.upper()) for result in described.get_all_operations()}
    assert found == set(OPERATIONS)
