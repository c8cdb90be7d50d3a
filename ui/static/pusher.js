// Sends a source's pictures, as many and as large as server and network take.

import { Rate } from "./rate.js";

const SIDES = [224, 320, 448, 640]; // pixels, the longer side
const FIRST_SIDE = 2;
const QUALITY = 0.85;
const MOST_ON_THE_WAY = 2; // pictures; more would only wait, and make what is said come late
const PATIENT_ON_THE_WAY = 6; // of a source that can be held: nothing is lost and nobody waits for it
const SLOW_MS = 400; // on the network; pictures become smaller above it,
const GROW_AFTER = 20; // and larger after so many below it
const JUDGED = 3; // pictures, latest
const KEPT = 64; // pictures, newest: what is said of one comes within seconds
const LATENCIES = 20;

export class Pusher {
  leftOut = 0; // pictures, because there was no room, here or on the server
  serverLatency = Infinity; // ms, once the server tells: the rest is the network's

  #stream; #source; #fps;
  #canvas = document.createElement("canvas");
  #stopped = false;
  #side = FIRST_SIDE; #network = []; // ms, of pictures of this side
  #pictures = new Map(); // by sequence
  #onTheWay = new Map(); // sequence -> when sent [ms]
  #latencies = []; // ms
  #rate = new Rate();
  #listening = new AbortController();

  constructor(stream, source, fps) {
    this.#stream = stream;
    this.#source = source;
    this.#fps = fps;
    const { signal } = this.#listening;
    stream.addEventListener("frame.ack", ({ detail }) => this.#done(detail), { signal });
    stream.addEventListener("disconnected", () => this.#onTheWay.clear(), { signal });
  }

  // Send until stopped, the first picture at or after each tick of the source's clock.
  async run() {
    const origin = this.#source.time;
    let tick = 0;
    while (!this.#stopped) {
      const early = tick / this.#fps - (this.#source.time - origin); // seconds
      if (early > 0) {
        await sleep(Math.min(early, 0.1));
      } else if (!this.#hasRoom && this.#source.patient) {
        this.#source.hold();
        await sleep(0.02);
      } else {
        if (this.#hasRoom) await this.#push();
        else this.leftOut += 1;
        if (this.#source.patient && !this.#stopped) this.#source.go();
        tick = Math.floor((this.#source.time - origin) * this.#fps) + 1;
      }
    }
  }

  stop() {
    this.#stopped = true;
  }

  // No ack is waited for any more.
  close() {
    this.stop();
    this.#listening.abort();
  }

  // The picture that was sent under that number, while it is still at hand.
  picture(sequence) {
    return this.#pictures.get(sequence) ?? null;
  }

  // From a picture's leaving to its being read, the median of the latest [ms]; null before the first.
  get latency() {
    return this.#latencies.length ? median(this.#latencies) : null;
  }

  get rate() {
    return this.#rate.perSecond;
  }

  get #hasRoom() {
    const most = this.#source.patient ? PATIENT_ON_THE_WAY : MOST_ON_THE_WAY;
    return this.#stream.ready && this.#onTheWay.size < most;
  }

  async #push() {
    const { video, time } = this.#source;
    if (!video.videoWidth) return;
    const scale = Math.min(1, SIDES[this.#side] / Math.max(video.videoWidth, video.videoHeight));
    this.#canvas.width = Math.round(video.videoWidth * scale);
    this.#canvas.height = Math.round(video.videoHeight * scale);
    this.#canvas.getContext("2d").drawImage(video, 0, 0, this.#canvas.width, this.#canvas.height);
    const picture = await new Promise((resolve) => this.#canvas.toBlob(resolve, "image/jpeg", QUALITY));
    if (!picture || this.#stopped) return;
    const sequence = await this.#stream.send(picture, time);
    if (sequence === null) {
      this.leftOut += 1;
      return;
    }
    this.#onTheWay.set(sequence, performance.now());
    this.#pictures.set(sequence, picture);
    if (this.#pictures.size > KEPT) this.#pictures.delete(this.#pictures.keys().next().value);
  }

  // Smaller pictures where the network is slow, larger ones once it isn't any more.
  #fit() {
    const latest = this.#network.slice(-JUDGED);
    const slow = latest.length === JUDGED && median(latest) > SLOW_MS;
    if (!slow && this.#network.length < GROW_AFTER) return;
    this.#side = Math.min(Math.max(this.#side + (slow ? -1 : 1), 0), SIDES.length - 1);
    this.#network = [];
  }

  #done({ sequence, read = 0, dropped = 0 }) {
    const now = performance.now();
    this.leftOut += dropped;
    this.#rate.add(read);
    for (const [sent, when] of this.#onTheWay) {
      if (sent > sequence) break;
      this.#onTheWay.delete(sent);
      if (!read) continue;
      this.#latencies.push(now - when);
      this.#network.push(now - when - this.serverLatency);
      this.#fit();
    }
    this.#latencies.splice(0, this.#latencies.length - LATENCIES);
  }
}

function median(numbers) {
  return [...numbers].sort((a, b) => a - b)[numbers.length >> 1];
}

function sleep(seconds) {
  return new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
}
