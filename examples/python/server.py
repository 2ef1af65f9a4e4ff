"""A service behind the gateway, on Python's own WSGI server. Run it with:

    KEYS_URL=https://api.example.com/.well-known/jwks.json AUDIENCE=orders PORT=9000 python3 server.py
"""

import json
import os
from wsgiref.simple_server import WSGIRequestHandler, make_server

from gateway_assertion import Gateway, Refused, Unavailable

gateway = Gateway(audience=os.environ["AUDIENCE"], keys_url=os.environ["KEYS_URL"], issuer=os.environ.get("ISSUER"))


class Handler(WSGIRequestHandler):
    def get_environ(self):
        environ = super().get_environ()
        environ["RAW_URI"] = self.path  # which wsgiref does not tell
        return environ


def application(environ, start_response):
    try:
        caller = gateway.identify(environ)
        status, body = "200 OK", {"hello": caller["sub"], "scopes": caller.get("scope")}
    except Refused as error:
        status, body = "401 Unauthorized", {"error": str(error)}
    except Unavailable as error:
        status, body = "503 Service Unavailable", {"error": str(error)}
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(body).encode()]


if __name__ == "__main__":
    make_server("127.0.0.1", int(os.environ.get("PORT", "9000")), application, handler_class=Handler).serve_forever()
