// The console: one event stream for the registry, one for events. Nothing is ever put into the page but as text.

const MAX_SHOWN = 200;
const byId = (id) => document.getElementById(id);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// An EventSource that outlives what a browser takes for the end: a balancer's 503, or a network that was away.
// A stream that is merely cut is resumed by the browser itself; a CLOSED one is made anew, from the last id.
class Stream {
  constructor(address, listeners, onstate) {
    this.address = address; // (lastId) => URL
    this.listeners = listeners;
    this.onstate = onstate;
    this.lastId = "";
    this.pause = 1000;
    this.everOpened = false;
    this.open();
  }

  open() {
    this.source = new EventSource(this.address(this.lastId));
    this.source.onopen = () => {
      this.pause = 1000;
      this.everOpened = true;
      this.onstate("open");
    };
    this.source.onerror = () => this.failed();
    for (const [name, listener] of Object.entries(this.listeners)) {
      this.source.addEventListener(name, (event) => {
        if (event.lastEventId) this.lastId = event.lastEventId;
        listener(event);
      });
    }
  }

  failed() {
    if (this.source.readyState !== EventSource.CLOSED) {
      this.onstate("lost");
      return;
    }
    this.onstate(this.everOpened ? "lost" : "refused");
    this.timer = setTimeout(() => this.open(), this.pause * (0.5 + Math.random()));
    this.pause = Math.min(this.pause * 2, 15000);
  }

  close() {
    clearTimeout(this.timer);
    this.source.close();
  }
}

// --- processes ---------------------------------------------------------------------------------------

const nodes = new Map();
const figure = (value, format = String) => (value === null || value === undefined ? "–" : format(value));
const FIGURES = [
  (node) => figure(node.cpu, (cpu) => `${Math.round(cpu * 100)} %`),
  (node) => figure(node.memory_bytes, (bytes) => `${(bytes / 1048576).toFixed(0)} MiB`),
  (node) => figure(node.in_flight),
  (node) => figure(node.ewma_ms, (ms) => `${ms.toFixed(1)} ms`),
  (node) => figure(node.lag_records),
  (node) => figure(node.connections),
];

const heard = (node) => `${Math.max(0, (node.age_ms + Date.now() - node.received) / 1000).toFixed(1)} s ago`;

function row(node) {
  const made = element("tr");
  const state = element("td");
  state.append(element("span", node.state, `pill ${node.state}`));
  made.append(element("td", node.id), element("td", node.role), state, element("td", heard(node), "number"));
  for (const show of FIGURES) made.append(element("td", show(node), "number"));
  made.append(element("td", node.preferred.join(" ") || "–"), element("td", node.version));
  return made;
}

function drawNodes() {
  const sorted = [...nodes.values()].sort((a, b) => a.role.localeCompare(b.role) || a.id.localeCompare(b.id));
  byId("nodes").replaceChildren(...sorted.map(row));
}

function keep(node) {
  nodes.set(`${node.id}/${node.incarnation}`, { ...node, received: Date.now() });
}

function showRegistry(state) {
  byId("registry").textContent = `registry: ${state}`;
  byId("registry").className = `pill ${state}`;
}

function watchNodes() {
  const note = byId("nodes-note");
  return new Stream(
    () => "/v1/nodes",
    {
      "cdrs.nodes": (event) => {
        const picture = JSON.parse(event.data);
        nodes.clear();
        picture.nodes.forEach(keep);
        showRegistry(picture.registry);
        drawNodes();
      },
      "cdrs.node": (event) => {
        const { change, node, registry } = JSON.parse(event.data);
        if (change === "leave") nodes.delete(`${node.id}/${node.incarnation}`);
        else keep(node);
        showRegistry(registry);
        drawNodes();
      },
    },
    (state) => {
      note.textContent = state === "open" ? "Live." : "The gateway does not answer; trying again.";
    },
  );
}

// --- publishing --------------------------------------------------------------------------------------

function say(output, text, bad = false) {
  output.textContent = text;
  output.className = bad ? "bad" : "";
}

async function problemOf(response) {
  const problem = await response.json().catch(() => ({}));
  return problem.detail || problem.title || `HTTP ${response.status}`;
}

async function publish(event) {
  event.preventDefault();
  const form = new FormData(event.target);
  const output = byId("receipt");
  const headers = { "content-type": "application/json", "ce-specversion": "1.0" };
  headers["ce-type"] = percentEncoded(form.get("type"));
  headers["ce-source"] = "/console/";
  headers["ce-id"] = crypto.randomUUID ? crypto.randomUUID() : `${Date.now()}-${Math.random()}`;
  if (form.get("key")) headers["ce-partitionkey"] = percentEncoded(form.get("key"));
  try {
    const url = `/v1/streams/${encodeURIComponent(form.get("stream"))}/events`;
    const response = await fetch(url, { method: "POST", headers, body: form.get("data") });
    if (!response.ok) return say(output, await problemOf(response), true);
    const receipt = await response.json();
    return say(output, `Stored in partition ${receipt.partition} at ${receipt.offset}.`);
  } catch {
    return say(output, "The gateway does not answer.", true);
  }
}

// Attribute values in headers (CloudEvents HTTP binding, 3.1.3.2): everything but printable ASCII, and " and %.
function percentEncoded(text) {
  return text.replace(/[^\x21\x23\x24\x26-\x7e]+/gu, encodeURIComponent);
}

// --- watching ----------------------------------------------------------------------------------------

let watched = null;
let waiting = [];
let count = 0;

function eventRow(raw) {
  const made = element("li");
  let event = {};
  try {
    event = JSON.parse(raw);
  } catch {
    event = { type: "not JSON", data: raw };
  }
  const data = event.data === undefined ? event.data_base64 || "" : JSON.stringify(event.data);
  made.append(element("b", event.cdrsstream), " ", element("span", `${event.type} ${event.id}`), element("br"));
  made.append(data.length > 500 ? `${data.slice(0, 500)} …` : data);
  return made;
}

function draw() {
  const list = byId("events");
  list.prepend(...waiting.reverse());
  waiting = [];
  while (list.childElementCount > MAX_SHOWN) list.lastElementChild.remove();
}

function show(made) {
  if (waiting.push(made) === 1) requestAnimationFrame(draw);
  if (waiting.length > MAX_SHOWN) waiting.shift();
}

function watch(pattern, from) {
  watched?.stream.close();
  byId("events").replaceChildren();
  waiting = [];
  count = 0;
  const output = byId("watching");
  const query = (start) => new URLSearchParams({ stream: pattern, from: start }).toString();
  const told = () => say(output, `Live, ${count.toLocaleString()} events.`);
  const listeners = {
    message: (event) => {
      count += 1;
      show(eventRow(event.data));
      told();
    },
    "cdrs.cursor": told,
    "cdrs.gap": (event) => show(element("li", `Gap: ${JSON.parse(event.data).reason}`, "gap")),
    "cdrs.bye": () => say(output, "The server moves this stream; coming back."),
  };
  const stream = new Stream(
    (lastId) => `/v1/events?${query(lastId || from)}`,
    listeners,
    async (state) => {
      if (state === "open") told();
      else if (state === "lost") say(output, "Cut; resuming.", true);
      else if (await refused(query(from), output)) stream.close();
      else say(output, "The gateway does not answer; trying again.", true);
    },
  );
  watched = { stream, pattern, from };
}

// A stream that never opened cannot say why; the same question for one page of history can.
async function refused(query, output) {
  try {
    const response = await fetch(`/v1/events?${query}&limit=1`, { headers: { accept: "application/json" } });
    if (response.status !== 400) return false;
    say(output, await problemOf(response), true);
    return true;
  } catch {
    return false;
  }
}

// --- the page ----------------------------------------------------------------------------------------

let registry = watchNodes();
setInterval(() => {
  if (nodes.size) drawNodes();
}, 1000);

byId("publish").addEventListener("submit", publish);
byId("watch").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  watch(form.get("stream").trim(), form.get("from"));
});
for (const button of document.querySelectorAll("button")) button.disabled = false;
watch(">", "-5m");

// A page in the back-forward cache must not hold connections; a browser has six for each host.
addEventListener("pagehide", () => {
  registry.close();
  watched?.stream.close();
});
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  registry = watchNodes();
  if (watched) watch(watched.pattern, watched.stream.lastId || watched.from);
});
