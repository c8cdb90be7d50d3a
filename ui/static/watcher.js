// Shows what a source of the server shows. To the page it is what a pusher is to a camera: it tells rate and
// latency, and has the pictures of moments, but the server takes the pictures itself.

import { Rate } from "./rate.js";

const EVERY_MS = 200; // pictures; a slow network shows fewer
const AGAIN_MS = 1000; // a moment's picture whose way was broken
const TRIES = 60;

export class Watcher {
  leftOut = 0; // pictures, because the model had no time for them
  serverLatency = Infinity; // ms, once the server tells

  #stream; #server; #image;
  #rate = new Rate();
  #stopped = false;
  #listening = new AbortController();

  constructor(stream, server, image) {
    this.#stream = stream;
    this.#server = server;
    this.#image = image;
    const { signal } = this.#listening;
    stream.addEventListener("frame.ack", ({ detail }) => this.#done(detail), { signal });
  }

  // Show one picture after another until stopped; the last one stays.
  async run() {
    while (!this.#stopped) {
      if (this.#stream.connected && !document.hidden) {
        const picture = await this.#server.newestPicture(this.#stream.sessionId).catch(() => null);
        if (picture && !this.#stopped) this.#show(picture);
      }
      await sleep(EVERY_MS);
    }
  }

  stop() {
    this.#stopped = true;
  }

  close() {
    this.stop();
    this.#listening.abort();
  }

  // The picture of a moment; null where it can't be had.
  async picture(sequence) {
    for (let tries = 0; tries < TRIES && !this.#listening.signal.aborted; tries += 1) {
      try {
        return await this.#server.picture(this.#stream.sessionId, sequence);
      } catch (error) {
        if (!(error instanceof TypeError)) break; // the server has answered that there is none
        await sleep(AGAIN_MS);
      }
    }
    return null;
  }

  get latency() {
    return Number.isFinite(this.serverLatency) ? this.serverLatency : null;
  }

  get rate() {
    return this.#rate.perSecond;
  }

  #done({ read = 0, dropped = 0 }) {
    this.leftOut += dropped;
    this.#rate.add(read);
  }

  #show(picture) {
    URL.revokeObjectURL(this.#image.src);
    this.#image.src = URL.createObjectURL(picture);
  }
}

function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
