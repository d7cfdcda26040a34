"""A receiver of webhooks: python3 webhook_receiver.py PORT MODE_FILE TAKEN_DIR

MODE_FILE says what it does with a request: take (200), fail (500), limit (429 with Retry-After), refuse (422), or hang. Each
request that it takes is a file of JSON in TAKEN_DIR, whole from the moment it is there, and on disk before the answer.
"""

import http.server
import json
import os
import sys
import time
import uuid

PORT, MODE_FILE, TAKEN_DIR = int(sys.argv[1]), sys.argv[2], sys.argv[3]
STATUS = {"take": 200, "fail": 500, "limit": 429, "refuse": 422}


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        with open(MODE_FILE) as file:
            mode = file.read().strip()
        print(mode, self.path, self.headers.get("Idempotency-Key"), flush=True)
        if mode == "hang":
            time.sleep(60)
            return
        if mode == "take":
            headers = {name.lower(): value for name, value in self.headers.items()}
            path = os.path.join(TAKEN_DIR, uuid.uuid4().hex)
            with open(path + ".part", "w") as file:
                json.dump({"path": self.path, "headers": headers, "body": body}, file)
                file.flush()
                os.fsync(file.fileno())
            # A kill before this leaves a part, which nobody reads: the request has no answer and comes again.
            os.rename(path + ".part", path + ".json")
        self.send_response(STATUS[mode])
        if mode == "limit":
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Receiver).serve_forever()
