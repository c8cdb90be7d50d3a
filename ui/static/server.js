// What the page asks of the server over plain HTTP.

export class Server {
  constructor(token) {
    this.#headers = token ? { Authorization: `Bearer ${token}` } : {};
  }

  #headers;

  // A session's state, its figures, and what its cache holds.
  async figures(sessionId) {
    return (await this.#get(`/v1/sessions/${sessionId}`)).json();
  }

  // What a session has said so far, as a file (a Blob).
  async file(sessionId, format) {
    return (await this.#get(`/v1/sessions/${sessionId}/events?format=${format}`)).blob();
  }

  // The names of what the server itself can watch.
  async sources() {
    return (await (await this.#get("/v1/sources")).json()).sources.map(({ name }) => name);
  }

  // What a session's source shows now (a Blob); null before its first picture.
  async newestPicture(sessionId) {
    const response = await this.#get(`/v1/sessions/${sessionId}/picture`);
    return response.status === 204 ? null : response.blob();
  }

  // The picture of a moment (a Blob), of a session that watches a source of the server.
  async picture(sessionId, sequence) {
    return (await this.#get(`/v1/sessions/${sessionId}/pictures/${sequence}`)).blob();
  }

  async #get(path) {
    const response = await fetch(path, { headers: this.#headers });
    if (!response.ok) throw new Error(`${path}: ${response.status}`);
    return response;
  }
}
