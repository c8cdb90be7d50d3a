"""`/openapi.json` and `/asyncapi.json`: what the server speaks, for machines. Message and answer shapes come
from the types that are sent; what stands here by hand is held true by tests."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stream.export import FORMATS
from ui import protocol
from ui.chat import ChatRequest
from ui.http_api import MEDIA_TYPES, SessionDetails, SessionList, Status
from ui.responses import Failed
from ui.source_api import JPEG, SourceList

_CLIENT = (
    protocol.SessionStart,
    protocol.Question,
    protocol.SessionUpdate,
    protocol.SessionReset,
    protocol.SessionEnd,
)
_SERVER = (
    protocol.SessionStarted,
    protocol.FrameAck,
    protocol.NarrationDelta,
    protocol.Narration,
    protocol.AnswerDelta,
    protocol.Answer,
    protocol.Notice,
    protocol.ServerError,
    protocol.SessionEnded,
)
_JSON = "application/json"


def routes(model: str) -> list[BaseRoute]:
    """Both documents of a server of that model; nobody needs a token to read what is public."""

    def document(content: dict[str, Any]) -> Any:
        body = msgspec.json.encode(content)

        async def show(request: Request) -> Response:
            return Response(body, media_type=_JSON)

        return show

    return [
        Route("/openapi.json", document(openapi(model))),
        Route("/asyncapi.json", document(asyncapi())),
    ]


def openapi(model: str) -> dict[str, Any]:
    """The HTTP API of a server of that model, OpenAPI 3.1."""
    shapes = (SessionList, SessionDetails, SourceList, Status, Failed, ChatRequest)
    _, schemas = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    schemas["ChatRequest"]["properties"]["model"] = {"const": model}
    schemas |= {"Models": _listed(), "ChatCompletion": _completion()}
    session = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    sequence = {
        "name": "sequence",
        "in": "path",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    }
    format = {"name": "format", "in": "query", "schema": {"enum": list(FORMATS), "default": "jsonl"}}
    export = {media: {"schema": {"type": "string"}} for media in sorted(set(MEDIA_TYPES.values()))}
    completion = {
        _JSON: {"schema": _ref("ChatCompletion")},
        "text/event-stream": {"schema": {"type": "string"}},
    }
    chat = {
        "operationId": "complete",
        "summary": "Answer a conversation's last question, about pictures and clips, as OpenAI's API does.",
        "requestBody": {"required": True, "content": {_JSON: {"schema": _ref("ChatRequest")}}},
        "responses": {"200": {"description": "The answer.", "content": completion}}
        | _failures("401", "403", "404", "413", "422", "500", "503"),
        "security": [{"token": []}],
    }
    guarded: dict[str, Any] = {"security": [{"token": []}]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "videollm", "version": version("videollm")},
        "paths": {
            "/health": {"get": _get("health", "Whether the server works.", "Status", "503")},
            "/ready": {"get": _get("ready", "Whether new sessions can begin.", "Status", "503")},
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Figures for Prometheus.",
                    "responses": {"200": _text("All figures.", "text/plain")} | _failures("401", "403"),
                }
                | guarded
            },
            "/v1/sessions": {"get": _get("list_sessions", "All sessions.", "SessionList", "401") | guarded},
            "/v1/sessions/{id}": {
                "parameters": [session],
                "get": _get("show_session", "A session's figures.", "SessionDetails", "401", "404") | guarded,
            },
            "/v1/sessions/{id}/events": {
                "parameters": [session, format],
                "get": {
                    "operationId": "export",
                    "summary": "What a session has said so far; of one that is gone, what its journal holds.",
                    "responses": {"200": {"description": "The events.", "content": export}}
                    | _failures("401", "403", "404", "422", "500"),
                }
                | guarded,
            },
            "/v1/sources": {"get": _get("list_sources", "The server's own.", "SourceList", "401") | guarded},
            "/v1/sessions/{id}/picture": {
                "parameters": [session],
                "get": {
                    "operationId": "newest_picture",
                    "summary": "What the source of a session shows now.",
                    "responses": _picture()
                    | {"204": {"description": "It has shown nothing yet."}}
                    | _failures("401", "403", "404"),
                }
                | guarded,
            },
            "/v1/sessions/{id}/pictures/{sequence}": {
                "parameters": [session, sequence],
                "get": {
                    "operationId": "moment_picture",
                    "summary": "The frame of a narration or an answer, where the server took it itself.",
                    "responses": _picture() | _failures("401", "403", "404"),
                }
                | guarded,
            },
            "/v1/models": {"get": _get("models", "The model that is served.", "Models", "401") | guarded},
            "/v1/chat/completions": {"post": chat},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def asyncapi() -> dict[str, Any]:
    """The live protocol, AsyncAPI 3.0."""
    _, schemas = msgspec.json.schema_components(
        (*_CLIENT, *_SERVER), ref_template="#/components/schemas/{name}"
    )
    messages = {
        str(kind.__struct_config__.tag): {
            "contentType": _JSON,
            "summary": (kind.__doc__ or "").split("\n")[0],
            "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
        }
        for kind in (*_CLIENT, *_SERVER)
    }
    messages["frame"] = {
        "contentType": "application/octet-stream",
        "summary": "16 bytes of header and a picture file, a binary message; see ui/PROTOCOL.md.",
        "payload": {"type": "string", "format": "binary", "maxLength": protocol.MAX_FRAME_BYTES},
    }

    def refs(*names: object) -> list[dict[str, str]]:
        return [{"$ref": f"#/channels/stream/messages/{name}"} for name in names]

    channel = {"$ref": "#/channels/stream"}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "videollm, live", "version": str(protocol.VERSION)},
        "channels": {
            "stream": {
                "address": protocol.PATH,
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
            }
        },
        "operations": {
            "hear": {
                "action": "receive",
                "channel": channel,
                "messages": refs(*[kind.__struct_config__.tag for kind in _CLIENT], "frame"),
            },
            "say": {
                "action": "send",
                "channel": channel,
                "messages": refs(*[kind.__struct_config__.tag for kind in _SERVER]),
            },
        },
        "components": {"messages": messages, "schemas": schemas},
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _get(id: str, summary: str, schema: str, *failures: str) -> dict[str, Any]:
    ok = {"description": summary, "content": {_JSON: {"schema": _ref(schema)}}}
    others = {"503": ok} if "503" in failures else {}
    return {
        "operationId": id,
        "summary": summary,
        "responses": {"200": ok} | others | _failures("403", *[f for f in failures if f != "503"]),
    }


def _failures(*statuses: str) -> dict[str, Any]:
    named = {"401": "A token is needed.", "403": "This page's origin is not allowed."}
    return {
        status: {"description": named.get(status, "Refused."), "content": {_JSON: {"schema": _ref("Failed")}}}
        for status in statuses
    }


def _text(description: str, media_type: str) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": {"type": "string"}}}}


def _picture() -> dict[str, Any]:
    content = {JPEG: {"schema": {"type": "string", "format": "binary"}}}
    return {"200": {"description": "The picture.", "content": content}}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _listed() -> dict[str, Any]:
    text = {"type": "string"}
    model = _object(id=text, object={"const": "model"}, created={"type": "integer"}, owned_by=text)
    return _object(object={"const": "list"}, data={"type": "array", "items": model})


def _completion() -> dict[str, Any]:
    text, count = {"type": "string"}, {"type": "integer", "minimum": 0}
    message = _object(role={"const": "assistant"}, content=text)
    choice = _object(index=count, message=message, finish_reason={"const": "stop"})
    return _object(
        id=text,
        object={"const": "chat.completion"},
        created=count,
        model=text,
        choices={"type": "array", "items": choice},
        usage=_object(prompt_tokens=count, completion_tokens=count, total_tokens=count),
    )
