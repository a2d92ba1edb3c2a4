"""The HTTP worker over a real socket: replies, refusals, documentation, and swaps under load."""

import json
import threading

import httpx
import msgspec
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from contracts import scoring
from contracts.scoring import RankReply, RankRequest, ScoreReply, ScoreRequest
from learner.snapshot import SnapshotStore
from serving.scorer import GROUPS, Scorer

SCORE, RANK = "/v1/score", "/v1/rank"


@pytest.fixture
def asked(events):
    """A known user and three items, one of them with attributes."""
    items = list(dict.fromkeys(event.item_id for event in events[:500]))[:2]
    return {"user_id": events[499].user_id, "items": [*items, {"item_id": "n", "item": {"category": "books"}}]}


def post(server, route, body, **more):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.client.post(route, content=content, **more)


def test_a_score_is_answered_as_the_scorer_answers_it(server, asked, now_ms) -> None:
    response = post(server, SCORE, asked)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    reply = msgspec.json.decode(response.content, type=ScoreReply)
    assert reply == server.reloader.scorer.score(msgspec.convert(asked, ScoreRequest), reply.request_id, now_ms)
    assert (reply.fallback, reply.model_version, reply.model_age_s) == ("personalised", 3, 10.0)
    assert [item.item_id for item in reply.items] == [*asked["items"][:2], "n"]


def test_a_ranking_is_answered_as_the_scorer_answers_it(server, asked, now_ms) -> None:
    body = {**asked, "weights": {"click": 1, "purchase": -20}, "top": 2}
    response = post(server, RANK, body)
    assert response.status_code == 200
    reply = msgspec.json.decode(response.content, type=RankReply)
    assert reply == server.reloader.scorer.rank(msgspec.convert(body, RankRequest), reply.request_id, now_ms)
    assert len(reply.items) == 2


def test_every_reply_has_a_request_id_of_its_own(server, asked) -> None:
    ids = {post(server, SCORE, asked).json()["request_id"] for _ in range(20)}
    assert len(ids) == 20
    assert all(ids)


def test_no_items_are_no_error(server) -> None:
    assert post(server, SCORE, {"user_id": "u", "items": []}).json()["items"] == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"garbage \xff\xfe", "malformed"),
        (b'{"user_id": "\xff", "items": []}', "utf-8"),
        (b"[]", "Expected `object`, got `array`"),
        (b"[" * 10_000, "Expected `object`, got `array`"),
        (b'{"user_id": 1, "items": [], "user": {"a": ' + b"[" * 9000 + b"]" * 9000 + b"}}", "$.user"),
        (b'{"user_id": 1, "items": [], "x": ' + b"[" * 9000 + b"]" * 9000 + b"}", "unknown field `x`"),
        (b'{"user_id": 1, "items": [], "context": {"a": NaN}}', "malformed"),
        (b'{"user_id": 1, "items": [], "context": {"a": 1e999}}', "out of range - at `$.context"),
        (b'{"items": []}', "missing required field `user_id`"),
        (b'{"user_id": 1.5, "items": []}', "`$.user_id`"),
        (b'{"user_id": "", "items": []}', "`$.user_id`"),
        (b'{"user_id": 1, "items": ["a", ["b"]]}', "`$.items[1]`"),
        (b'{"user_id": 1, "items": ["a", {"id": "b"}]}', "`$.items[1]`"),
        (b'{"user_id": 1, "items": [{"item_id": "a", "item": {"price": {}}}]}', "`$.items[0].item"),
        (b'{"user_id": 1, "items": [], "ts_ms": -1}', "`$.ts_ms`"),
        (b'{"user_id": 1, "items": [], "ts_ms": "now"}', "`$.ts_ms`"),
        (b'{"user_id": 1, "items": [], "weights": {"click": 1}}', "unknown field `weights`"),
        (b'{"user_id": ' + b"1" * 5000 + b', "items": []}', "`$.user_id`"),
    ],
    ids=lambda value: value.decode(errors="replace")[:40] if isinstance(value, bytes) else None,
)
def test_a_body_that_breaks_the_contract_is_refused_with_its_place(server, body, told) -> None:
    response = post(server, SCORE, body)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
    assert told in response.json()["error"]
    assert response.json()["error"].startswith("The body breaks the contract: ")
    assert server.client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, "missing required field `weights`"),
        ({"weights": {"click": "much"}}, "`$.weights[...]`"),
        ({"weights": {"click": 1}, "top": 0}, "`$.top`"),
    ],
)
def test_a_ranking_that_breaks_the_contract_is_refused(server, asked, more, told) -> None:
    response = post(server, RANK, {**asked, **more})
    assert response.status_code == 400
    assert told in response.json()["error"]


@pytest.mark.parametrize("number", [10**25, -(10**300), 10**400, 1e308, -0.0])
def test_numbers_of_any_size_are_attributes(server, number) -> None:
    item = {"item_id": "i", "item": {"price": number, "category": number}}
    response = post(server, SCORE, {"user_id": "u", "items": [item], "context": {"position": number}})
    assert response.status_code in {200, 400}
    if response.status_code == 200:
        probabilities = list(response.json()["items"][0]["probabilities"].values())
        assert np.isfinite(probabilities).all()


def test_an_unknown_task_is_refused_with_the_known_ones(server, asked) -> None:
    response = post(server, RANK, {**asked, "weights": {"clik": 1}})
    assert response.status_code == 422
    assert "found `clik`, expected some of content_view, click, purchase" in response.json()["error"]


def test_too_many_items_are_refused(server) -> None:
    response = post(server, SCORE, {"user_id": "u", "items": list(range(51))})
    assert response.status_code == 422
    assert "at most 50 items; found 51" in response.json()["error"]
    assert post(server, SCORE, {"user_id": "u", "items": list(range(50))}).status_code == 200


@pytest.mark.parametrize("size", [20_001, 3_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body_is_refused_however_it_comes(server, size, chunked) -> None:
    body = b"x" * size
    if chunked:  # no content-length that could tell
        response = server.client.post(SCORE, content=(body[at : at + 5000] for at in range(0, size, 5000)))
        assert response.request.headers["transfer-encoding"] == "chunked"
    else:
        response = server.client.post(SCORE, content=body)
    assert response.status_code == 413
    assert "at most 20000 bytes" in response.json()["error"]
    assert server.client.get("/readyz").status_code == 200


def test_other_methods_and_paths_are_not_found(server) -> None:
    assert server.client.get(SCORE).status_code == 405
    assert server.client.post("/v1/scores").status_code == 404


def test_before_the_first_snapshot_it_is_alive_but_not_ready_and_then_ready(
    settings, learned, tmp_path, now_ms, serving, asked, wait_until
) -> None:
    folder = tmp_path / "later"
    with serving(settings, folder, now_ms) as server:
        assert server.client.get("/healthz").status_code == 200
        for response in (server.client.get("/readyz"), server.client.get("/v1/model"), post(server, SCORE, asked)):
            assert response.status_code == 503
            assert "No snapshot is loaded yet" in response.json()["error"]
        assert np.isnan(server.value("anabranch_model_age_seconds"))
        folder.symlink_to(learned)
        wait_until(lambda: server.client.get("/readyz").status_code == 200)
        assert post(server, SCORE, asked).status_code == 200


def test_the_model_says_what_it_is(server, settings, learned) -> None:
    manifest = SnapshotStore(learned).manifest(3)
    assert server.client.get("/v1/model").json() == {
        "model_version": 3,
        "delta": 0,
        "model_age_s": 10.0,
        "created_ms": manifest.created_ms,
        "event_time_ms": manifest.event_time_ms,
        "n_events": 1200,
        "settings_fingerprint": settings.fingerprint(),
        "tasks": ["content_view", "click", "purchase"],
        "fields": [
            "user_id",
            "item_id",
            "item.category",
            "item.brand",
            "item.tags",
            "item.title",
            "user.country",
            "context.device",
        ],
        "offsets": {"events": {"0": 1200}},
    }


def test_the_documentation_lists_the_contract_and_every_reference_leads_somewhere(server) -> None:
    assert "/openapi.json" in server.client.get("/docs").text
    document = server.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    contract = {
        name
        for name, value in vars(scoring).items()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and name != "Reply"
    }
    assert contract <= set(schemas)

    references = []

    def walk(node):
        if isinstance(node, dict):
            references.extend([node["$ref"]] if "$ref" in node else [])
            node = list(node.values())
        for below in node if isinstance(node, list) else []:
            walk(below)

    walk(document)
    assert references
    for reference in references:
        place = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
    assert set(document["paths"]) == {SCORE, RANK, "/v1/model", "/healthz", "/readyz"}
    for route, request, reply in ((SCORE, "ScoreRequest", "ScoreReply"), (RANK, "RankRequest", "RankReply")):
        described = document["paths"][route]["post"]
        body = described["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert body == f"#/components/schemas/{request}"
        answer = described["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        assert answer == f"#/components/schemas/{reply}"
        assert {"400", "413", "422", "503"} <= set(described["responses"])


def test_prometheus_reads_what_happened(server, asked) -> None:
    post(server, SCORE, asked)
    post(server, SCORE, b"{")
    post(server, RANK, {**asked, "weights": {"clik": 1}})
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["anabranch_score_requests_total", (("code", "200"), ("route", SCORE))] == 1
    assert samples["anabranch_score_requests_total", (("code", "400"), ("route", SCORE))] == 1
    assert samples["anabranch_score_requests_total", (("code", "422"), ("route", RANK))] == 1
    assert samples["anabranch_score_seconds_count", (("route", SCORE),)] == 2
    assert samples["anabranch_model_version_info", (("version", "3"),)] == 1
    assert samples["anabranch_model_age_seconds", ()] == 10.0


def test_a_failure_nobody_thought_of_is_counted_and_answered(server, asked, caplog) -> None:
    server.reloader.scorer._encoder = None  # broken on purpose: it cannot happen otherwise
    response = post(server, SCORE, asked)
    assert response.status_code == 500
    assert "its log says why" in response.json()["error"]
    assert server.value("anabranch_score_requests_total", {"route": SCORE, "code": "500"}) == 1
    assert "A request to /v1/score failed" in caplog.text


def test_swaps_under_load_fail_no_request_mix_no_versions_and_never_go_back(
    settings, folder, now_ms, serving, asked, wait_until
) -> None:
    n_swaps, n_clients = 6, 3
    body = {**asked, "ts_ms": now_ms}
    replies = [[] for _ in range(n_clients)]
    done = threading.Event()

    def ask(server, number):
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
            while not done.is_set():
                response = client.post(SCORE, json=body)
                replies[number].append((response.status_code, response.content))

    store = SnapshotStore(folder, keep=20)
    with store, serving(settings, folder, now_ms) as server:
        wait_until(lambda: server.reloader.scorer is not None)
        clients = [threading.Thread(target=ask, args=(server, number)) for number in range(n_clients)]
        for client in clients:
            client.start()
        try:
            for _ in range(n_swaps):
                old = store.load()
                old.groups["base_rates"]["positives"] *= 1.1  # tells the versions apart
                old.groups["dense"]["wide.weight"] += 0.01
                manifest = old.manifest
                version = store.publish(
                    old.groups,
                    old.states,
                    created_ms=manifest.created_ms,
                    event_time_ms=manifest.event_time_ms,
                    n_events=manifest.n_events,
                    offsets=manifest.resume_offsets,
                    settings_fingerprint=manifest.settings_fingerprint,
                    tasks=manifest.tasks,
                    layout=manifest.layout,
                ).version
                wait_until(lambda version=version: server.reloader.scorer.manifest.version == version)
        finally:
            done.set()
            for client in clients:
                client.join()
        assert server.value("anabranch_reload_failures_total") == 0

    request = msgspec.convert(body, ScoreRequest)
    expected = {
        version: Scorer(settings, SnapshotStore(folder).load(version, groups=GROUPS, states=()), 50).score(
            request, "", 0
        )
        for version in range(3, 3 + n_swaps + 1)
    }
    served = set()
    for answers in replies:
        assert answers
        assert {code for code, _ in answers} == {200}
        decoded = [msgspec.json.decode(content, type=ScoreReply) for _, content in answers]
        versions = [reply.model_version for reply in decoded]
        assert versions == sorted(versions)
        served |= set(versions)
        for reply in decoded:
            of_version = expected[reply.model_version]
            for item, wanted in zip(reply.items, of_version.items, strict=True):
                assert item.probabilities == pytest.approx(wanted.probabilities, rel=1e-5)
    assert len(served) >= 3
    clicks = [reply.items[0].probabilities["click"] for reply in expected.values()]
    assert len(set(clicks)) == len(clicks), "the versions cannot be told apart"
