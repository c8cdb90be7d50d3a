// A client of the live protocol (ui/PROTOCOL.md) for browsers, in one file.
//
//   const stream = new VideoLLM({ token });            // of the server that the page comes from
//   stream.addEventListener("narration", ({ detail }) => show(detail.text));  // as text, never as HTML
//   await stream.start();
//   if (stream.ready) stream.send(await (await fetch(picture)).blob());
//   const answer = await stream.ask("What is in view?");
//   const figures = await stream.end();
//
// Every message of the server is dispatched as an event of its type, with the message as `detail`; beside
// them "connected", "disconnected" (the client tries again) and "failed" (it doesn't). It reconnects by
// itself and goes on where it was.

const HEADER_BYTES = 16;
const FORMATS = { "image/jpeg": 1, "image/png": 2, "image/webp": 3 };
const DELAYS_MS = [100, 5000]; // between attempts to connect, first and longest
const MOST_BUFFERED_BYTES = 1 << 20;
const SILENCE_MS = 15_000; // a connection that says nothing for so long, while a word is due, is lost
const RETRIED = new Set(["reader.slow", "server.full", "server.shutdown", "server.error", "start.timeout"]);

export class RefusedError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export class VideoLLM extends EventTarget {
  sessionId = null;
  credits = 0; // how many frames the server has room for
  limits = null;
  figures = null; // once the session has ended
  sent = 0; // frames

  #url; #settings; #patienceMs;
  #socket = null;
  #resumeToken = null; #lastEventId = 0;
  #begun = false; // the session, in this connection
  #sequence = -1; #asked = 0; #questions = new Map();
  #updated = {}; // all that was changed since the start
  #resetBehind = null; // the frame before a reset that may not have arrived
  #ending = null; #error = null; #brokenSince = null; #delayMs = DELAYS_MS[0]; #timer = null; #silence = null;
  #starting = null;

  // `settings`: fps, threshold, prompt, events, source and token of session.start.
  constructor({ url = null, patienceMs = 60_000, ...settings } = {}) {
    super();
    const scheme = globalThis.location?.protocol === "https:" ? "wss:" : "ws:";
    this.#url = url ?? `${scheme}//${location.host}/v1/stream`;
    this.#settings = settings;
    this.#patienceMs = patienceMs;
  }

  // Resolves once the session has begun; rejects with RefusedError.
  start() {
    this.#starting = withResolvers();
    this.#connect();
    return this.#starting.promise;
  }

  // Whether a frame sent now will be taken at once. One that is not had better be dropped for a later one.
  get ready() {
    return this.connected && this.credits > 0 && this.#socket.bufferedAmount < MOST_BUFFERED_BYTES;
  }

  get connected() {
    return this.#begun && this.#socket.readyState === WebSocket.OPEN;
  }

  // Send a picture (a Blob of type image/jpeg, image/png or image/webp), taken at `time` seconds on a clock that
  // never runs backward; its sequence number, or null where there is no connection.
  async send(blob, time = performance.now() / 1000) {
    const format = FORMATS[blob.type];
    if (!format) throw new TypeError(`a frame is a JPEG, PNG or WebP picture, not ${blob.type || "untyped"}`);
    if (!this.connected) return null;
    this.credits -= 1;
    const picture = new Uint8Array(await blob.arrayBuffer());
    if (!this.connected) return null;
    const sequence = ++this.#sequence; // taken only now: frames leave in this order
    const message = new Uint8Array(HEADER_BYTES + picture.length);
    const header = new DataView(message.buffer);
    header.setUint8(0, 0x56); // V
    header.setUint8(1, 0x46); // F
    header.setUint8(2, format);
    header.setUint32(4, sequence);
    header.setFloat64(8, time);
    message.set(picture, HEADER_BYTES);
    this.#socket.send(message);
    this.sent += 1;
    this.#expectWord();
    return sequence;
  }

  // Ask about all that was sent; resolves with the answer's message, rejects with RefusedError.
  ask(text, id = `q${++this.#asked}`) {
    if (this.#error) return Promise.reject(this.#error);
    return new Promise((resolve, reject) => {
      this.#questions.set(id, { text, resolve, reject });
      this.#say({ type: "question", id, text });
    });
  }

  // Change fps, threshold or events, now or once there is a connection again.
  update(settings) {
    Object.assign(this.#settings, settings);
    Object.assign(this.#updated, settings);
    this.#say({ type: "session.update", ...settings });
  }

  // Forget the stream; the next frame begins a new one. Questions that wait for an answer are rejected.
  reset() {
    this.#resetBehind = this.#sequence;
    const error = new RefusedError("session.reset", "the stream was reset before the answer came");
    for (const id of [...this.#questions.keys()]) this.#settle(id, (question) => question.reject(error));
    this.#say({ type: "session.reset" });
  }

  // No frame and no question will follow; resolves with the session's figures once all is said.
  end() {
    this.#ending ??= withResolvers();
    this.#say({ type: "session.end" });
    return this.#ending.promise;
  }

  // Go away without ending the session: it waits for `limits.grace_seconds`.
  close() {
    clearTimeout(this.#timer);
    this.#fail(new RefusedError("closed", "closed by the page"));
    this.#socket?.close(1000);
  }

  // Give up a connection that has gone dead without a word.
  #lose(socket) {
    socket.onmessage = socket.onclose = null;
    socket.close();
    this.#closed(null);
  }

  #connect() {
    const socket = new WebSocket(this.#url, ["videollm.v1"]);
    socket.binaryType = "arraybuffer";
    let refusal = null;
    socket.onopen = () => {
      const start = { type: "session.start", ...this.#settings };
      if (this.#resumeToken) Object.assign(start, { resume_token: this.#resumeToken, last_event_id: this.#lastEventId });
      socket.send(JSON.stringify(start));
    };
    socket.onmessage = ({ data }) => {
      this.#heardSomething();
      const message = JSON.parse(data);
      if (message.type === "error" && message.fatal) refusal = new RefusedError(message.code, message.message);
      else this.#hear(message);
      this.#dispatch(message.type, message);
    };
    socket.onclose = () => this.#closed(refusal);
    this.#socket = socket;
    this.#expectWord();
  }

  #expectWord() {
    this.#silence ??= setTimeout(() => this.#lose(this.#socket), SILENCE_MS);
  }

  #heardSomething() {
    clearTimeout(this.#silence);
    this.#silence = null;
  }

  #closed(refusal) {
    this.#heardSomething();
    this.#begun = false;
    this.credits = 0;
    this.#dispatch("disconnected", refusal);
    if (this.figures || this.#error) return;
    if (refusal?.code === "session.unknown" && this.#resumeToken) {
      this.#beginAnew();
    } else if (refusal && (!this.sessionId || !RETRIED.has(refusal.code))) {
      return this.#fail(refusal);
    } else if (!this.sessionId) {
      return this.#fail(new RefusedError("unreachable", "the server is not there, or doesn't let this page connect"));
    }
    this.#brokenSince ??= performance.now();
    if (performance.now() - this.#brokenSince > this.#patienceMs) {
      return this.#fail(new RefusedError("unreachable", "the server has been away for too long"));
    }
    this.#timer = setTimeout(() => this.#connect(), this.#delayMs);
    this.#delayMs = Math.min(2 * this.#delayMs, DELAYS_MS[1]);
  }

  #hear(message) {
    this.#lastEventId = Math.max(this.#lastEventId, message.event_id);
    switch (message.type) {
      case "session.started":
        this.sessionId = message.session_id;
        this.#resumeToken = message.resume_token;
        this.credits = message.credits;
        this.limits = message.limits;
        this.#brokenSince = null;
        this.#delayMs = DELAYS_MS[0];
        this.#begun = true;
        this.#sayAgain(message);
        this.#starting.resolve(this);
        this.#dispatch("connected", message);
        break;
      case "frame.ack":
        this.credits += message.credits;
        if (this.#settings.source) this.#expectWord(); // a source goes on by itself, or tells its end
        break;
      case "answer":
        this.#settle(message.id, (question) => question.resolve(message));
        break;
      case "error":
        this.#settle(message.id, (question) => question.reject(new RefusedError(message.code, message.message)));
        break;
      case "session.ended":
        if (message.reason === "server.shutdown" && !this.#ending) {
          this.#beginAnew();
        } else {
          this.figures = message.figures;
          this.#ending?.resolve(message.figures);
        }
    }
  }

  // What was said without a connection, or may have been lost on the way.
  #sayAgain({ resumed, last_sequence: lastSequence = -1 }) {
    if (Object.keys(this.#updated).length) this.#say({ type: "session.update", ...this.#updated });
    // A later frame that has arrived came behind the reset.
    if (!resumed || lastSequence > this.#resetBehind) this.#resetBehind = null;
    if (this.#resetBehind !== null) this.#say({ type: "session.reset" });
    for (const [id, { text }] of this.#questions) this.#say({ type: "question", id, text });
    if (this.#ending) this.#say({ type: "session.end" });
  }

  #settle(id, how) {
    const question = this.#questions.get(id);
    if (question) {
      this.#questions.delete(id);
      how(question);
    }
  }

  #beginAnew() {
    this.#resumeToken = null;
    this.#lastEventId = 0;
  }

  #fail(error) {
    if (this.#error || this.figures) return;
    this.#error = error;
    this.#starting?.reject(error);
    this.#ending?.reject(error);
    for (const { reject } of this.#questions.values()) reject(error);
    this.#questions.clear();
    this.#dispatch("failed", error);
  }

  #say(message) {
    if (!this.connected) return;
    this.#socket.send(JSON.stringify(message));
    if (message.type !== "session.update") this.#expectWord(); // all others are answered
  }

  #dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

function withResolvers() {
  const settlers = {};
  settlers.promise = new Promise((resolve, reject) => Object.assign(settlers, { resolve, reject }));
  return settlers;
}
