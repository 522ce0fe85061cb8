"""What a real server shows under its nodes."""

import json
import struct
import uuid

import websocket


def notes(server, workflow, on_progress=lambda step, steps: None):
    """(node, text) of every note that the front-end is sent while a workflow runs."""
    client, found = uuid.uuid4().hex, []
    events = websocket.create_connection(f"ws://127.0.0.1:{server.port}/ws?clientId={client}", timeout=60)
    try:
        prompt_id = server.queue(workflow, client)
        while True:
            message = events.recv()
            if isinstance(message, bytes):
                kind, length = struct.unpack(">II", message[:8])
                if kind == 3:  # text
                    found.append((message[8 : 8 + length].decode(), message[8 + length :].decode()))
                continue
            event = json.loads(message)
            assert event["type"] not in ("execution_error", "execution_interrupted"), event
            if event["type"] == "progress":
                on_progress(event["data"]["value"], event["data"]["max"])
            if event["type"] == "execution_success" and event["data"]["prompt_id"] == prompt_id:
                return found
    finally:
        events.close()
