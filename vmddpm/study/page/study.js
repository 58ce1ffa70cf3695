// One reader's way through the study. What is done is known to the server alone: this page asks where to go on, and
// leaves an image only when the server has said that its answer is on the disk.

const VERSION = document.querySelector("meta[name=page-version]").content;
const LONGEST_PAUSE = 5000;

const element = (id) => document.getElementById(id);
const form = element("answers");
const viewer = new Viewer(element("image"), { brightness: element("brightness"), contrast: element("contrast") });
const ahead = new Map(); // place in the order -> promise of its image

let state = null; // what the server said last
let position = 0; // of the image on the screen
let shownAt = null; // when it appeared; null while it has not
let busy = false;

class Refusal extends Error {
  constructor(status, content) {
    super(content.error);
    this.status = status;
    this.content = content;
  }
}

// A response, or a Refusal. A server that is away or cannot store is asked again until it can: `content` carries what
// makes a second arrival of the same answer harmless.
async function ask(path, content) {
  const headers = { "Content-Type": "application/json" };
  const options = content && { method: "POST", headers, body: JSON.stringify(content) };
  for (let pause = 500; ; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
    let trouble;
    try {
      const response = await fetch(path, options);
      if (response.ok) {
        if (pause > 500) say("");
        return response;
      }
      const refusal = new Refusal(response.status, await response.json().catch(() => ({ error: response.statusText })));
      if (response.status < 500) throw refusal;
      trouble = refusal.message;
    } catch (error) {
      if (error instanceof Refusal) throw error;
      trouble = "No connection to the server.";
    }
    say(`${trouble} Trying again; please keep this page open.`);
    await new Promise((done) => setTimeout(done, pause));
  }
}

const json = async (path, content) => (await ask(path, content)).json();

function say(text) {
  element("message").textContent = text;
}

function open(id) {
  for (const part of document.querySelectorAll("main > section, main > form")) part.hidden = part.id !== id;
  element("who").hidden = id === "sign-in";
}

// Anything that fails for a reason of its own leads back to the sign-in or to where the server says the reader is.
async function guarded(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.status === 401) {
      open("sign-in");
      element("code").focus();
    } else if (error.status === 409) {
      take(error.content);
      await goTo(state.next);
    }
    say(error.status === 401 ? "" : error.message);
  } finally {
    busy = false;
  }
}

function take(latest) {
  state = { ...state, ...latest };
  element("title").textContent = document.title = state.title;
  element("reader").textContent = state.reader;
}

function signIn(event) {
  event.preventDefault();
  guarded(async () => {
    take(await json("sign-in", { code: element("code").value, password: element("password").value }));
    element("password").value = "";
    ahead.clear();
    say("");
    await enter();
  });
}

async function enter() {
  if (state.next > 0) return goTo(state.next);
  const paragraphs = state.instructions.split(/\n\s*\n/).map((text) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = text;
    return paragraph;
  });
  element("instructions-text").replaceChildren(...paragraphs);
  open("instructions");
  element("start").focus();
}

async function picture(place) {
  const response = await ask(`image/${place}`);
  return createImageBitmap(await response.blob(), { colorSpaceConversion: "none" });
}

function load(place) {
  if (!ahead.has(place)) {
    ahead.set(place, picture(place));
    ahead.get(place).catch(() => ahead.delete(place));
  }
  return ahead.get(place);
}

async function goTo(place) {
  if (place === state.total) {
    element("done-count").textContent = state.total;
    open("done");
    return;
  }
  position = place;
  shownAt = null;
  open("reading");
  const given = place < state.next ? state.previous : {};
  for (const name of ["answer", "confidence"]) {
    for (const radio of form.elements[name]) radio.checked = radio.value === given[name];
  }
  element("progress-text").textContent = `Image ${place + 1} of ${state.total}`;
  element("progress").max = state.total;
  element("progress").value = place;
  element("back").disabled = place === 0 || place < state.next;
  element("waiting").hidden = false;
  viewer.show(null);
  viewer.show(await load(place));
  element("waiting").hidden = true;
  shownAt = performance.now();
  for (const old of ahead.keys()) if (old < place - 1) ahead.delete(old);
  if (place + 1 < state.total && place === state.next) load(place + 1).catch(() => {});
}

function identifier() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function confirm() {
  const [answer, confidence] = [form.elements.answer.value, form.elements.confidence.value];
  if (shownAt === null) return;
  if (!answer || !confidence) {
    say(answer ? "Choose low, medium or high confidence first." : "Choose real or synthetic first.");
    return;
  }
  const seconds = Math.round(performance.now() - shownAt) / 1000;
  const revision = position < state.next ? state.previous.revision : 0;
  const content = { position, revision, answer, confidence, seconds, page: VERSION, submission: identifier() };
  guarded(async () => {
    take(await json("answer", content));
    say("");
    await goTo(state.next);
  });
}

function back() {
  const here = element("done").hidden ? position : state.total;
  if (here !== state.next || here === 0) return;
  say("");
  guarded(() => goTo(here - 1));
}

const KEYS = {
  r: () => choose("answer", "real"), s: () => choose("answer", "synthetic"),
  l: () => choose("confidence", "low"), m: () => choose("confidence", "medium"), h: () => choose("confidence", "high"),
  "+": () => viewer.zoomBy(1.25), "=": () => viewer.zoomBy(1.25), "-": () => viewer.zoomBy(0.8),
  b: () => viewer.adjust("brightness", 5), d: () => viewer.adjust("brightness", -5),
  c: () => viewer.adjust("contrast", 5), f: () => viewer.adjust("contrast", -5), 0: () => viewer.reset(),
};
const ARROWS = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };

function choose(name, value) {
  form.elements[name].value = value;
  say("");
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !element("sign-in").hidden) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "Backspace") {
    event.preventDefault();
    if (!event.repeat) back();
  } else if (element("reading").hidden) {
    return;
  } else if (key === "Enter" && event.target.tagName !== "BUTTON" && event.target.tagName !== "SUMMARY") {
    event.preventDefault();
    if (!event.repeat) confirm();
  } else if (key in KEYS) {
    event.preventDefault();
    KEYS[key]();
  } else if (key in ARROWS && event.target.tagName !== "INPUT") {
    event.preventDefault();
    viewer.moveBy(...ARROWS[key]);
  }
}

element("sign-in").addEventListener("submit", signIn);
element("start").addEventListener("click", () => guarded(() => goTo(state.next)));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  confirm();
});
element("back").addEventListener("click", back);
element("done-back").addEventListener("click", back);
element("zoom-in").addEventListener("click", () => viewer.zoomBy(1.25));
element("zoom-out").addEventListener("click", () => viewer.zoomBy(0.8));
element("reset").addEventListener("click", () => viewer.reset());
element("sign-out").addEventListener("click", () => guarded(async () => {
  await json("sign-out", {});
  location.reload();
}));
document.addEventListener("keydown", onKey);
if (matchMedia("(max-width: 46rem)").matches) element("view").open = false;

guarded(async () => {
  take(await json("state"));
  await enter();
});
