"""``strings --top`` on real processes that leak text among ordinary objects: it names the leak."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from test_real import child, program

# Rendered log lines and HTML fragments, both kept by mistake; and what a service holds anyway.
PYTHON_LEAK = """
import random, sys
random.seed(20241124)
class Node:
    def __init__(self, i):
        self.index, self.name, self.children = i, f"node {i}", [i, str(i)]
words = [bytes(random.choices(b"abcdefghijklmnopqrstuvwxyz", k=random.randrange(3, 12))).decode()
         for _ in range(20_000)]
ordinary = {
    "nodes": [Node(i) for i in range(30_000)],
    "texts": [" ".join(random.choices(words, k=20)) for _ in range(20_000)],
    "floats": [random.random() for _ in range(100_000)],
    "keys": {f"{random.getrandbits(64):016x}": i for i in range(50_000)},
    "bytes": [random.randbytes(random.randrange(2000)) for _ in range(5_000)],
}
log = [f"2024-05-01 12:{i // 60 % 60:02}:{i % 60:02} INFO request {i} from 10.0.{i % 256}.1 "
       f"took {i % 977} ms" for i in range(60_000)]
html = [f'<li class="cart-item" data-id="{i * 7919}"><a href="/item/{i}">{i % 100} EUR</a></li>'
        for i in range(60_000)]
print("ready", flush=True)
sys.stdin.read()
"""

NODE_LEAK = """
let seed = 20241124;
const random = n => (seed = (seed * 1103515245 + 12345) % 2147483648) % n;
const flat = text => Buffer.from(text, "latin1").toString("latin1");
const words = [];
for (let i = 0; i < 20000; i++) words.push(random(1e9).toString(36));
const ordinary = {objects: [], texts: [], map: new Map(), buffers: []};
for (let i = 0; i < 30000; i++) {
    ordinary.objects.push({index: i, half: i / 2, list: [i, i + 1], name: flat("node " + i)});
    ordinary.map.set(flat("key" + random(1e9).toString(36)), i);
}
for (let i = 0; i < 20000; i++) {
    const text = [];
    for (let k = 0; k < 20; k++) text.push(words[random(20000)]);
    ordinary.texts.push(flat(text.join(" ")));
}
const log = [], html = [];
for (let i = 0; i < 60000; i++) {
    log.push(flat(`2024-05-01 12:${i % 60}:${i % 59} INFO request ${i} from 10.0.${i % 256}.1 ` +
                  `took ${i % 977} ms`));
    html.push(flat(`<li class="cart-item" data-id="${i * 7919}"><a href="/item/${i}">` +
                   `${i % 100} EUR</a></li>`));
}
process.stdin.resume();
process.stdin.on("end", () => process.exit(log.length + html.length + ordinary.map.size));
console.log("ready");
"""


@pytest.mark.parametrize(
    "command",
    [(sys.executable, "-c", PYTHON_LEAK), ("node", "-e", NODE_LEAK)],
    ids=["python", "node"],
)
def test_the_first_five_rows_name_the_leak(command: tuple[str, ...]) -> None:
    name = command[0] if Path(command[0]).is_absolute() else program(command[0])
    with child(name, *command[1:], ready=b"ready") as process:
        result = subprocess.run(
            [sys.executable, "-m", "fastdump", "strings", "--top", "5", "--json", str(process.pid)],
            capture_output=True,
            text=True,
        )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    texts = [row["text"] for row in rows]
    log = [
        row for row in rows if "#-#-# #:#:# INFO request # from #.#.#.# took # ms" in row["text"]
    ]
    html = [
        row for row in rows if '<li class="cart-item" data-id="#"><a href="/item/#">' in row["text"]
    ]
    assert log, texts
    assert html, texts
    # Garbage collectors leave copies: at least what the process holds, all under one row.
    assert log[0]["count"] >= 60_000, texts
    assert html[0]["count"] >= 60_000, texts
