// Keeps the page as the server has it: the server renders elements, and this module puts them in place of those with the same
// ids. It animates the beat, shows ages and what is late, and sends changes of the tempo.

const TICK_MS = 100;
const RETRY_MS = 1000;
/** The server says something at least every 5 s. A connection without that is lost, though nothing was heard of it. */
const SILENCE_MS = 12_000;
const RELOAD_MS = 3000;
/** A beat that is due counts as late after this time: reading Kafka and the way to the page take some of it. */
const OVERDUE_MS = 250;
/** A beat that is later than this is announced. */
const ANNOUNCED_MS = 3000;

const main = document.querySelector("main");
const connection = document.getElementById("connection");
/** The server's clock minus the time since this page was loaded, in milliseconds. */
let clockOffset = Number(main.dataset.now) - performance.now();
let lastEventId = main.dataset.after;
let stream;
/** The instant since which nothing is known, on the server's clock; `undefined` while the page is live. */
let lostAt = serverNow();
/** True until the first event, or the first sign that none will come. */
let isFirst = true;
/** The times of the last event and of the last attempt to connect, on a clock that nobody sets. */
let heardAt = performance.now();
let triedAt = heardAt;
/** True until the first event of a connection. */
let isNew = true;

function serverNow() {
  return performance.now() + clockOffset;
}

/** Changes `old` into `wanted` in place, so that focus, selection and scroll positions stay. */
function morph(old, wanted) {
  if (old.nodeName !== wanted.nodeName) {
    old.replaceWith(wanted);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== wanted.data) old.data = wanted.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // Scripts of this module set styles, the server sets none.
    if (name !== "style" && !wanted.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  morphChildren(old, [...wanted.childNodes]);
}

/** Children with ids keep their elements wherever they move; the others are matched by their position. */
function morphChildren(parent, wanted) {
  const ids = new Set(wanted.map((child) => child.id));
  for (const child of [...parent.children]) {
    if (child.id && !ids.has(child.id)) child.remove();
  }
  const byId = new Map([...parent.children].filter((child) => child.id).map((child) => [child.id, child]));
  let at = parent.firstChild;
  for (const child of wanted) {
    const same = child.id ? byId.get(child.id) : undefined;
    if (same && same !== at) parent.insertBefore(same, at);
    if (same) {
      at = same.nextSibling;
      morph(same, child);
    } else if (at && !at.id && !child.id) {
      const next = at.nextSibling;
      morph(at, child);
      at = next;
    } else {
      parent.insertBefore(child, at);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function apply({ data, lastEventId: id }) {
  heardAt = performance.now();
  const { now, module, html } = JSON.parse(data);
  if (!import.meta.url.endsWith(module)) {
    // After an upgrade. Not at once: servers of both versions may be behind one name.
    stream.close();
    lostAt ??= serverNow();
    setTimeout(() => location.reload(), RELOAD_MS);
    return;
  }
  // The event that was under way for the shortest time defines the clock: behind a slow link, what is shown is old and says so.
  const offset = now - heardAt;
  clockOffset = isNew ? offset : Math.max(clockOffset, offset);
  [isNew, isFirst, lostAt] = [false, false, undefined];
  lastEventId = id;
  for (const text of html) {
    const template = document.createElement("template");
    template.innerHTML = text;
    const wanted = template.content.firstElementChild;
    const old = document.getElementById(wanted.id);
    if (old) morph(old, wanted);
  }
  tick();
}

function connect() {
  stream?.close();
  triedAt = performance.now();
  isNew = true;
  stream = new EventSource(`${main.dataset.live}?after=${encodeURIComponent(lastEventId ?? "")}`);
  stream.onmessage = apply;
  stream.onerror = () => {
    lostAt ??= serverNow();
    // It may try again by itself.
    [isFirst, isNew, triedAt] = [false, true, performance.now()];
    tick();
    // A refused stream does not try again by itself.
    const refused = stream;
    if (refused.readyState === EventSource.CLOSED) setTimeout(() => stream === refused && connect(), RETRY_MS);
  };
}

/** A page that nobody sees needs no stream: a browser has few connections to one server. */
function followVisibility() {
  if (document.hidden) {
    stream?.close();
    stream = undefined;
    lostAt ??= serverNow();
  } else {
    connect();
  }
}

function age(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 120) return `${seconds} s`;
  return seconds < 7200 ? `${Math.floor(seconds / 60)} min` : `${Math.floor(seconds / 3600)} h`;
}

function clock(ms) {
  return new Date(ms).toISOString().slice(11, 19);
}

function setText(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

function tick() {
  for (const time of document.querySelectorAll("time[data-at]")) {
    setText(time, `${time.dateTime.slice(11, 19)} (${age(serverNow() - Number(time.dataset.at))} ago)`);
  }
  if (stream && performance.now() - Math.max(heardAt, triedAt) > SILENCE_MS) {
    lostAt ??= serverNow() - (performance.now() - heardAt);
    isFirst = false;
    connect();
  }
  const isLost = lostAt !== undefined && !isFirst;
  setText(connection, isLost
    ? `✕ No connection to backbeat ui since ${clock(lostAt)}. Trying again.`
    : lostAt === undefined ? "● live" : "… connecting");
  connection.className = isLost ? "alarm" : "";
  document.body.classList.toggle("stale", isLost);
  const beat = document.getElementById("beat");
  if (!beat?.dataset.due) return;
  const state = document.getElementById("beat-state");
  const overdue = serverNow() - Number(beat.dataset.due);
  const isLate = overdue > OVERDUE_MS && !isLost;
  setText(state, isLost ? `unknown since ${clock(lostAt)}`
    : isLate ? `▲ beat ${Number(beat.dataset.beat) + 1} is late by ${(overdue / 1000).toFixed(1)} s`
      : state.dataset.text);
  state.classList.toggle("alarm", isLate || state.textContent.startsWith("▲"));
  // Without the number that grows, so that it is read out once.
  setText(document.getElementById("late"), overdue > ANNOUNCED_MS && !isLost
    ? `Beat ${Number(beat.dataset.beat) + 1} has been due since ${clock(Number(beat.dataset.due))}.` : "");
  swing(beat, -overdue);
}

/** The arm reaches its side when the next beat is due, and stays there until that beat has come. */
function swing(beat, due) {
  const arm = document.getElementById("arm");
  if (!arm || arm.dataset.beat === beat.dataset.beat) return;
  arm.dataset.beat = beat.dataset.beat;
  arm.style.transitionDuration = `${Math.max(0, due)}ms`;
}

/** Takes the token out of the address, which `backbeat dev` hands out with one. It must not stay in the history. */
function takeToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  history.replaceState(null, "", location.pathname + location.search);
  const form = document.getElementById("tempo-form");
  if (form) form.elements.token.value = token;
}

function followTempoForm() {
  const form = document.getElementById("tempo-form");
  if (!form) return;
  const result = document.getElementById("tempo-result");
  const fields = form.elements;
  async function send(method, body) {
    result.className = "";
    result.textContent = "…";
    try {
      const headers = { Authorization: `Bearer ${fields.token.value}`, "Content-Type": "application/json" };
      const response = await fetch("/api/v1/tempo", { method, headers, body: body && JSON.stringify(body) });
      const answer = await response.json();
      if (!response.ok) throw new Error(answer.error);
      result.textContent = `● ${answer.tempo_bpm} BPM in bars of ${answer.bar_length}, from beat ${answer.from_beat}`;
    } catch (error) {
      result.className = "alarm";
      result.textContent = `✕ ${error.message}`;
    }
  }
  // What is no number is sent as it is: the API says what is allowed.
  const number = ({ value }) => (value.trim() === "" ? undefined : Number.isNaN(Number(value)) ? value : Number(value));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send("POST", { tempo_bpm: number(fields.tempo_bpm), bar_length: number(fields.bar_length), ramp: fields.ramp.checked });
  });
  document.getElementById("tempo-cancel").addEventListener("click", () => send("DELETE"));
}

/** Loads a page again until it asks for that no more. */
async function reloadMain() {
  let isBusy = false;
  try {
    if (!document.hidden) {
      const response = await fetch(location.href, { signal: AbortSignal.timeout(SILENCE_MS) });
      const fresh = new DOMParser().parseFromString(await response.text(), "text/html").querySelector("main");
      if (!fresh) throw new Error(`status ${response.status}`);
      isBusy = response.status === 503;
      if (!isBusy) morph(main, fresh);
      lostAt = undefined;
    }
  } catch {
    lostAt ??= Date.now();
  }
  setText(connection, lostAt ? `✕ No answer from backbeat ui since ${clock(lostAt)}. Trying again.`
    : isBusy ? "… The log cannot be read now. Trying again." : "");
  connection.className = lostAt ? "alarm" : "";
  if (main.dataset.reload) setTimeout(reloadMain, Number(main.dataset.reload));
}

takeToken();
addEventListener("hashchange", takeToken);
if (main.dataset.live) {
  followTempoForm();
  document.addEventListener("visibilitychange", followVisibility);
  followVisibility();
  tick();
  setInterval(tick, TICK_MS);
} else {
  lostAt = undefined;
  connection.textContent = "";
  if (main.dataset.reload) setTimeout(reloadMain, Number(main.dataset.reload));
}
