"""What the tool must not do to itself, and what no schema can say."""

import os

import schemathesis

# The token that the tool asks with, and the agent that its runs need.
KEPT = set(os.environ["PACKRUN_TEST_KEPT"].split(","))


@schemathesis.hook
def filter_case(context, case):
    """Whoever revokes his own token, or drains the only agent, finds nothing more."""
    harms = case.operation.path.endswith(("/revoke", "/drain"))
    return not harms or KEPT.isdisjoint(str(value) for value in (case.path_parameters or {}).values())


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """A cursor is opaque: which one was given, only the server knows. So no made-up one counts as valid."""
    return not (response.status_code == 400 and b"urn:packrun:problem:invalid-cursor" in response.content)


@schemathesis.deserializer("application/x-ndjson")
def ndjson(context, response):
    """The entries of a page, of which the schema describes one: the first stands for all."""
    import json

    lines = [json.loads(line) for line in response.content.splitlines()]
    return lines[0] if lines else {}
