"""Sends messages with smtplib and prints what it sent, as JSON. The job comes as JSON on standard input."""

import hashlib
import json
import queue
import random
import smtplib
import sys
import threading
import time

job = json.load(sys.stdin)

# Text to cut bodies from: lines of all kinds, dots at their starts among them.
ALPHABET = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,;:-+*/="
pool_random = random.Random(job["seed"])
pool = "\r\n".join(
    pool_random.choice(("", "", "", ".", "..", "From ", "\t")) + "".join(pool_random.choices(ALPHABET, k=pool_random.randrange(0, 120)))
    for _ in range(30_000)
).encode("ascii")


def build(number):
    """The message with this number: the same bytes for the same seed, run and number."""
    chance = random.Random(job["seed"] * 1_000_003 + number)
    weights = [weight for weight, _, _ in job["sizes"]]
    _, low, high = chance.choices(job["sizes"], weights)[0]
    size = chance.randint(low, high)
    identity = "%s-%d" % (job["run"], number)
    eight_bits = chance.random() < 0.1
    head = (
        "From: Load <%s>\r\nTo: %s\r\nSubject: load %d\r\nMessage-ID: <%s@load.example>\r\n%s: %s\r\n"
        "Date: Mon, 2 Nov 2026 10:00:00 +0000\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
        "Content-Transfer-Encoding: %s\r\n\r\n"
        % (job["from"], ", ".join(job["to"]), number, identity, job["id_header"], identity, "8bit" if eight_bits else "7bit")
    ).encode("ascii")
    opening = ("Gr\u00fc\u00dfe %d \U0001f54a\r\n" % number if eight_bits else "Hello %d\r\n" % number).encode("utf-8")
    wanted = max(0, size - len(head) - len(opening))
    start = chance.randrange(0, len(pool) // 2)
    body = pool[start:start + wanted]
    while len(body) < wanted:
        body += pool[: wanted - len(body)]
    # Whole lines: a cut between CR and LF would make a bare one.
    body = body.strip(b"\r\n") + b"\r\n"
    return identity, head + opening + body, eight_bits


class Sender(threading.Thread):
    def __init__(self, numbers, sent):
        super().__init__()
        self.numbers, self.sent, self.smtp, self.used = numbers, sent, None, 0
        self.failure = None

    def run(self):
        try:
            while True:
                try:
                    number = self.numbers.get_nowait()
                except queue.Empty:
                    break
                self.send(number)
            self.leave()
        except BaseException as failure:
            self.failure = failure
            raise

    def send(self, number):
        identity, message, eight_bits = build(number)
        to = [address.replace("{n}", str(number)) for address in job["to"]]
        deadline = time.monotonic() + job["patience"]
        tries, pause = 0, 0.05
        while True:
            tries += 1
            code = self.offer(to, message, eight_bits)
            if code == 250 or code >= 500 or time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
            pause = min(pause * 2, 2.0)
        self.sent.append({
            "id": identity, "from": job["from"], "to": to, "size": len(message),
            "sha256": hashlib.sha256(message).hexdigest(), "code": code, "tries": tries,
        })

    def offer(self, to, message, eight_bits):
        """One try; the reply's code, or 0 if the connection was cut."""
        try:
            if self.smtp is None:
                self.smtp = smtplib.SMTP(job["host"], job["port"], "load.example", timeout=120)
                self.smtp.ehlo_or_helo_if_needed()
                self.used = 0
            options = ["BODY=8BITMIME"] if eight_bits and self.smtp.has_extn("8bitmime") else []
            refused = self.smtp.sendmail(job["from"], to, message, options)
            self.used += 1
            if self.used >= job["per_connection"]:
                self.leave()
            # Some recipients refused: not what a load is for; the first one's code tells.
            return 250 if not refused else next(iter(refused.values()))[0]
        except smtplib.SMTPRecipientsRefused as refusal:
            return next(iter(refusal.recipients.values()))[0]
        except smtplib.SMTPResponseException as refusal:
            if refusal.smtp_code in (421, -1):
                self.drop()
            return max(refusal.smtp_code, 0)
        except (OSError, smtplib.SMTPException):
            self.drop()
            return 0

    def leave(self):
        if self.smtp is not None:
            try:
                self.smtp.quit()
            except (OSError, smtplib.SMTPException):
                pass
            self.smtp = None

    def drop(self):
        if self.smtp is not None:
            self.smtp.close()
            self.smtp = None


numbers, sent = queue.Queue(), []
for each in job["numbers"]:
    numbers.put(each)
senders = [Sender(numbers, sent) for _ in range(job["threads"])]
for sender in senders:
    sender.start()
for sender in senders:
    sender.join()
if any(sender.failure for sender in senders):
    sys.exit(1)
json.dump(sent, sys.stdout)
