#!/usr/bin/env python3
"""A REST client of the standard library: keep-alive, JSON and binary tensors that agree to the bit, many clients, awkward ones."""
import http.client
import json
import os
import socket
import struct
import threading
import urllib.parse

HOST, PORT = urllib.parse.urlparse(os.environ["TIDEPOOL_HTTP"]).netloc.split(":")
IDS = list(range(16))


def request_json():
    return {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 16], "data": [IDS]}]}


def ask(connection, method, path, body=None, headers=None):
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, dict((k.lower(), v) for k, v in answer.getheaders()), answer.read()


def infer_json(connection):
    status, _, body = ask(connection, "POST", "/v2/models/words/infer", json.dumps(request_json()))
    assert status == 200, body
    output = json.loads(body)["outputs"][0]
    return output["shape"], struct.pack(f"<{len(output['data'])}f", *output["data"])


def infer_binary(connection):
    tensor = struct.pack("<16q", *IDS)
    head = {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 16],
                        "parameters": {"binary_data_size": len(tensor)}}],
            "parameters": {"binary_data_output": True}}
    text = json.dumps(head).encode()
    status, headers, body = ask(connection, "POST", "/v2/models/words/infer", text + tensor,
                                {"Inference-Header-Content-Length": str(len(text))})
    assert status == 200, body
    length = int(headers["inference-header-content-length"])
    output = json.loads(body[:length])["outputs"][0]
    assert len(body) == length + output["parameters"]["binary_data_size"]
    return output["shape"], body[length:]


def both_forms_agree():
    connection = http.client.HTTPConnection(HOST, int(PORT), timeout=30)
    first = infer_json(connection)
    socket_used = connection.sock
    assert infer_binary(connection) == first, "JSON and binary answers differ"
    assert connection.sock is socket_used, "the connection was not kept"
    connection.close()


def repository():
    connection = http.client.HTTPConnection(HOST, int(PORT), timeout=60)
    status, _, body = ask(connection, "POST", "/v2/repository/models/words/load")
    assert status == 200, body
    status, _, body = ask(connection, "POST", "/v2/repository/models/words/unload")
    assert status == 200 and json.loads(body)["freed_bytes"] > 0, body
    infer_json(connection)  # loads it again by itself
    status, _, body = ask(connection, "POST", "/v2/repository/models/nothing/load")
    assert status == 404 and "nothing" in json.loads(body)["error"], body
    connection.close()


def many_clients():
    failures = []

    def client():
        try:
            connection = http.client.HTTPConnection(HOST, int(PORT), timeout=60)
            for _ in range(10):
                infer_binary(connection)
            connection.close()
        except Exception as error:  # reported by the main thread
            failures.append(error)

    threads = [threading.Thread(target=client) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def awkward_clients():
    body = json.dumps(request_json()).encode()
    whole = b"POST /v2/models/words/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    # Leaving at every point of a request.
    for end in list(range(0, len(whole), 7)) + [len(whole)]:
        with socket.create_connection((HOST, int(PORT)), timeout=30) as client:
            client.sendall(whole[:end])
    # A byte at a time.
    with socket.create_connection((HOST, int(PORT)), timeout=30) as client:
        for i in range(len(whole)):
            client.sendall(whole[i:i + 1])
        assert client.recv(15) == b"HTTP/1.1 200 OK"
    # Noise.
    for noise in (b"\0" * 100 + b"\r\n\r\n", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", os.urandom(500) + b"\r\n\r\n"):
        with socket.create_connection((HOST, int(PORT)), timeout=30) as client:
            client.sendall(noise)
            client.shutdown(socket.SHUT_WR)
            while client.recv(4096):
                pass
    both_forms_agree()


for test in (both_forms_agree, repository, many_clients, awkward_clients):
    test()
    print("ok", test.__name__)
