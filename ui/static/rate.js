// How many pictures were read a second, of late.

const SECONDS = 10;

export class Rate {
  #reads = []; // [when [s], how many]

  add(count) {
    if (count) this.#reads.push([performance.now() / 1000, count]);
  }

  // null before the second of them.
  get perSecond() {
    const now = performance.now() / 1000;
    this.#reads = this.#reads.filter(([when]) => now - when < SECONDS);
    if (this.#reads.length < 2) return null;
    const seconds = now - this.#reads[0][0];
    return this.#reads.slice(1).reduce((sum, [, count]) => sum + count, 0) / Math.max(seconds, 1);
  }
}
