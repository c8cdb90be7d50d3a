// How it goes: the page's own figures, and those of the session's cache.

const EVERY_MS = 1000;

export class Figures {
  #timer = null;
  #find = (name) => document.getElementById(`figure-${name}`);
  #layers = document.getElementById("layers");
  #kept = document.getElementById("kept");

  // Show them, again and again, until `stop`.
  watch(server, stream, pusher) {
    const look = async () => {
      this.#show("fps", pusher.rate, (rate) => rate.toFixed(1));
      this.#show("latency", pusher.latency, duration);
      this.#show("dropped", pusher.leftOut, String);
      if (stream.connected) {
        const { cache, figures } = await server.figures(stream.sessionId).catch(() => ({}));
        if (figures) pusher.serverLatency = figures.latency_median_ms ?? Infinity;
        if (cache && this.#timer !== null) this.#showCache(cache);
      }
      if (this.#timer !== null) this.#timer = setTimeout(look, EVERY_MS);
    };
    this.stop();
    this.#timer = setTimeout(look, 0);
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
  }

  #show(name, value, write) {
    this.#find(name).textContent = value === null ? "–" : write(value);
  }

  #showCache({ tokens, capacity, bytes, kept }) {
    this.#show("tokens", tokens, (count) => `${count.toLocaleString("en")} of ${capacity.toLocaleString("en")}`);
    this.#show("bytes", bytes, (count) => `${(count / 2 ** 20).toFixed(1)} MiB`);
    while (this.#layers.children.length < kept.length) this.#layers.append(document.createElement("span"));
    const share = (count) => (tokens ? count / tokens : 0);
    const percent = (count) => `${Math.round(100 * share(count))} %`;
    kept.forEach((count, layer) => {
      const cell = this.#layers.children[layer];
      cell.style.setProperty("--kept", share(count));
      cell.title = `layer ${layer}: ${count} of ${tokens} tokens, ${percent(count)}`;
    });
    const mean = kept.reduce((sum, count) => sum + count, 0) / kept.length;
    this.#kept.textContent = `${percent(mean)} on average`;
    this.#layers.ariaLabel =
      `Tokens kept in each of ${kept.length} layers: ${percent(mean)} on average, ` +
      `${percent(Math.min(...kept))} at the least, ${percent(Math.max(...kept))} at the most`;
  }
}

function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}
