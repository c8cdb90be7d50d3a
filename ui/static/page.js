// The page: what is clicked, typed and heard, and what is shown of it.

import { VideoLLM } from "./videollm.js";
import { Figures } from "./figures.js";
import { Pusher } from "./pusher.js";
import { Server } from "./server.js";
import { SourceError, cameras, openCamera, openClip, openServerSource } from "./sources.js";
import { Timeline, clock } from "./timeline.js";
import { Listener, canListen, canSpeak, speak } from "./voice.js";
import { Watcher } from "./watcher.js";

const FPS = 2; // pictures a second: what the model was trained with
const TOKEN = "videollm.token"; // its name in the session's storage
const CAPTION_MS = 6000;
const FORMATS = ["srt", "md", "jsonl"]; // of the exports, and their files' endings

const find = (id) => document.getElementById(id);
const exportButtons = document.querySelectorAll("#exports button");
const timeline = new Timeline();
const figures = new Figures();
let live = null; // { stream, server, source, pusher or watcher as `pusher`, files, asked } until the next start
let state = "idle"; // idle, starting, live, lost, ending

// Starting and stopping

async function start() {
  setState("starting", "Opening …");
  hideMessage();
  let source = null;
  try {
    source = await openSource();
    setState("starting", "Connecting …");
    const prompt = find("prompt").value.trim() || null;
    const settings = { token: chosenToken(), prompt, fps: FPS, threshold: chosenThreshold() };
    if (source.name) settings.source = source.name;
    const stream = new VideoLLM(settings);
    listenTo(stream);
    await stream.start();
    begin(stream, source, new Server(settings.token));
  } catch (error) {
    source?.close();
    setState("idle", "Not connected");
    refuse(error);
  }
}

async function openSource() {
  const video = find("video");
  if (chosenKind() === "clip") {
    const clip = await openClip(video, find("clip").files[0]);
    clip.hold();
    return clip;
  }
  if (chosenKind() === "server") return openServerSource(video, find("picture"), find("server").value);
  const camera = await openCamera(video, find("camera").value);
  await listCameras(camera.deviceId);
  return camera;
}

function begin(stream, source, server) {
  live?.pusher.close();
  const pusher = source.name ? new Watcher(stream, server, find("picture")) : new Pusher(stream, source, FPS);
  live = { stream, server, source, pusher, files: {}, asked: 0 };
  timeline.clear();
  find("clock").hidden = true;
  source.onended = () => {
    pusher.stop();
    const ended = source.patient ? "The clip has ended. Ask about it, or stop." : "The camera is gone. Start again.";
    showMessage(ended);
  };
  pusher.run();
  figures.watch(server, stream, pusher);
  setState("live", "Live");
}

async function stop() {
  const { stream, source, pusher, server, files } = live;
  const connected = state === "live";
  setState("ending", "Ending …");
  hideMessage();
  pusher.stop();
  source.close();
  try {
    if (!connected) return stream.close();
    await stream.end();
    // The server forgets a session soon after its end: what may be saved is fetched now.
    await Promise.all(FORMATS.map(async (format) => (files[format] = await server.file(stream.sessionId, format))));
  } catch (error) {
    refuse(error);
  } finally {
    figures.stop();
    setState("idle", "Ended");
  }
}

function listenTo(stream) {
  const on = (type, react) => stream.addEventListener(type, ({ detail }) => react(detail));
  on("connected", ({ resumed, lost_events: lost }) => {
    if (state !== "lost") return;
    setState("live", "Live");
    if (!resumed) showMessage("The server was started anew and has forgotten what came before.");
    else if (lost) showMessage("Back again; some of what happened meanwhile is lost.");
    else hideMessage();
  });
  on("disconnected", () => {
    if (state !== "live") return;
    setState("lost", "Reconnecting …");
    showMessage("The connection is lost. Trying again …");
  });
  on("failed", (error) => {
    if (state === "live" || state === "lost") giveUp(error);
  });
  on("session.ended", ({ reason }) => {
    if (reason === "server.error") giveUp(new Error("The model failed on this stream. Start again."));
  });
  on("error", ({ id, message }) => {
    if (!id && state === "live") showMessage(message);
  });
  on("narration.delta", ({ id, start, text }) => {
    timeline.add(id, "narration", start, text);
    caption(id, text);
  });
  on("narration", ({ id, start, text, sequence }) => {
    timeline.say(id, "narration", start, text);
    illustrate(stream, id, sequence);
    caption(id, text, true);
  });
  on("answer.delta", ({ id, start, text }) => timeline.add(id, "answer", start, text));
  on("answer", ({ id, start, text, sequence, moments }) => {
    timeline.say(id, "answer", start, text);
    if (moments) timeline.recall(id, moments);
    illustrate(stream, id, sequence);
    if (find("speak").checked) speak(text);
  });
  on("notice", ({ event_id: id, code, start, text }) => {
    timeline.say(`notice ${id} of ${stream.sessionId}`, "notice", start, text); // another session counts anew
    if (code === "source.ended" || code === "source.failed") {
      live?.pusher.stop();
      showMessage(`${text}. Ask about it, or stop.`);
    }
  });
}

// Put a moment's picture beside it, as soon as it is there.
async function illustrate(stream, id, sequence = null) {
  const picture = sequence === null ? null : await live?.pusher.picture(sequence);
  if (picture && live.stream === stream) timeline.illustrate(id, picture);
}

function giveUp(error) {
  live.pusher.close();
  live.source.close();
  figures.stop();
  setState("idle", "Not connected");
  refuse(error);
}

function refuse(error) {
  switch (error.code) {
    case "auth.required":
    case "auth.wrong":
      showMessage(error.code === "auth.wrong" ? "The token is wrong." : "This server asks for a token.");
      find("settings").open = true;
      find("token").focus();
      break;
    case "server.full":
      showMessage("All places on this server are taken.", start);
      break;
    case "session.taken":
      showMessage("This session goes on in another window.");
      break;
    case "unreachable":
      showMessage("The server can't be reached.", start);
      break;
    default:
      showMessage(error.message, error instanceof SourceError ? start : null);
  }
}

// Asking

async function ask(text) {
  const question = text.trim();
  if (!question || !live) return;
  find("question").value = "";
  const id = `asked-${++live.asked}`;
  timeline.ask(id, question);
  try {
    await live.stream.ask(question, id);
  } catch (error) {
    timeline.say(id, "answer", null, `Not answered: ${error.message}`);
  }
}

const listener = new Listener(
  (words, final) => {
    find("question").value = words;
    if (final) ask(words);
  },
  (error) => {
    find("listen").ariaPressed = "false";
    if (error === "not-allowed") showMessage("The microphone was refused.");
    else if (error) showMessage(`Voice doesn't work here: ${error}.`);
  },
);

function toggleListening() {
  if (listener.listening) return listener.stop();
  find("listen").ariaPressed = "true";
  listener.start();
}

// Saving

async function save(format) {
  const { stream, server, files } = live;
  let file;
  try {
    file = files[format] ?? (await server.file(stream.sessionId, format));
  } catch {
    return showMessage("The server can't be reached, or has forgotten this session.");
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = `videollm-${stream.sessionId}.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Settings

function chosenKind() {
  return document.querySelector("input[name=kind]:checked").value;
}

function chosenThreshold() {
  return find("threshold-own").checked ? null : find("threshold").valueAsNumber;
}

function chosenToken() {
  return find("token").value.trim() || null;
}

function showKind() {
  find("server-choice").hidden = chosenKind() !== "server";
  find("clip-choice").hidden = chosenKind() !== "clip";
  find("camera-choice").hidden = chosenKind() !== "camera" || find("camera").options.length < 2;
}

async function listCameras(current) {
  const found = await cameras();
  find("camera").replaceChildren(...found.map(({ deviceId, label }) => new Option(label, deviceId)));
  find("camera").value = current;
  showKind();
}

async function listSources() {
  const names = await new Server(chosenToken()).sources().catch(() => []); // without the token, for one
  find("server").replaceChildren(...names.map((name) => new Option(name)));
  find("server-kind").hidden = !names.length;
  if (!names.length && chosenKind() === "server") document.querySelector("input[value=camera]").checked = true;
  showKind();
}

function changeThreshold() {
  const own = find("threshold-own").checked;
  find("threshold").disabled = own;
  find("threshold-value").textContent = own ? "" : find("threshold").valueAsNumber.toFixed(2);
}

// Showing

function setState(name, text) {
  state = name;
  const pill = find("connection");
  pill.textContent = text;
  pill.dataset.state = name;
  const on = name === "live" || name === "lost";
  find("start").textContent = on || name === "ending" ? "Stop" : "Start";
  find("start").disabled = name === "starting" || name === "ending";
  find("send").disabled = !on;
  find("listen").disabled = !on;
  find("stage").classList.toggle("on", name !== "idle");
  for (const control of ["kinds", "camera", "clip", "server"]) find(control).disabled = name !== "idle";
  for (const button of exportButtons) button.disabled = !live || name === "starting";
  if (name === "idle") find("caption").textContent = "";
}

let captioned = { id: null, timer: null };
function caption(id, words, whole = false) {
  const before = captioned.id === id && !whole ? find("caption").textContent : "";
  find("caption").textContent = before + words;
  clearTimeout(captioned.timer);
  captioned = { id, timer: setTimeout(() => (find("caption").textContent = ""), CAPTION_MS) };
}

let retry = null;
function showMessage(text, again = null) {
  const message = find("message");
  message.firstElementChild.textContent = text;
  message.lastElementChild.hidden = !again;
  message.hidden = false;
  retry = again;
}

function hideMessage() {
  find("message").hidden = true;
}

// Wiring

find("start").onclick = () => (state === "idle" ? start() : stop());
find("message").lastElementChild.onclick = () => retry?.();
find("kinds").onchange = showKind;
find("threshold").oninput = changeThreshold;
for (const id of ["threshold", "threshold-own"]) {
  find(id).onchange = () => {
    changeThreshold();
    if (state === "live" || state === "lost") live.stream.update({ threshold: chosenThreshold() });
  };
}
find("ask").onsubmit = (event) => {
  event.preventDefault();
  ask(find("question").value);
};
find("listen").hidden = find("listen-key").hidden = !canListen;
find("listen").onclick = toggleListening;
find("speak-choice").hidden = !canSpeak;
find("token").value = sessionStorage.getItem(TOKEN) ?? "";
find("token").onchange = () => {
  sessionStorage.setItem(TOKEN, find("token").value.trim());
  listSources();
};
find("show-help").onclick = () => find("help").showModal();
for (const button of document.querySelectorAll("dialog .close")) {
  button.onclick = () => button.closest("dialog").close();
}
for (const button of exportButtons) button.onclick = () => save(button.dataset.format);
find("video").ontimeupdate = () => {
  find("clock").hidden = !live?.source.patient;
  find("clock").textContent = clock(find("video").currentTime);
};

const KEYS = {
  s: () => find("start").click(),
  "/": () => find("question").focus(),
  v: () => canListen && find("listen").click(),
  l: () => timeline.showLatest(),
  "?": () => find("help").showModal(),
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target === find("question")) return find("question").blur();
  const typing = "input:not([type=radio], [type=checkbox], [type=range]), textarea, select, dialog";
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest(typing)) return;
  if (!find("keys-on").checked) return;
  const action = KEYS[event.key.toLowerCase()];
  if (action) {
    event.preventDefault();
    action();
  }
});

// A page that goes away gives its place back; one that comes back from the browser's memory has none.
addEventListener("pagehide", () => live && state !== "idle" && live.stream.end());
addEventListener("pageshow", ({ persisted }) => persisted && location.reload());

showKind();
listSources();
changeThreshold();
setState("idle", "Not connected");
