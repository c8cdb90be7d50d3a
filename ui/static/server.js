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

  async #get(path) {
    const response = await fetch(path, { headers: this.#headers });
    if (!response.ok) throw new Error(`${path}: ${response.status}`);
    return response;
  }
}
