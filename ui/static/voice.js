// Questions by voice and answers aloud, where the browser can.

const Recognition = globalThis.SpeechRecognition ?? globalThis.webkitSpeechRecognition;

export const canListen = Boolean(Recognition);
export const canSpeak = "speechSynthesis" in globalThis;

export class Listener {
  #recognition = null;

  // `onwords(text, final)` as they are understood, `onend(error)` once at the end, with null if nothing is wrong.
  constructor(onwords, onend) {
    this.onwords = onwords;
    this.onend = onend;
  }

  get listening() {
    return this.#recognition !== null;
  }

  start() {
    const recognition = new Recognition();
    let error = null;
    recognition.lang = "en-US";
    recognition.interimResults = true;
    recognition.onresult = ({ results }) => {
      const words = [...results].map(([best]) => best.transcript).join("");
      this.onwords(words, results[results.length - 1].isFinal);
    };
    recognition.onerror = (event) => (error = event.error);
    recognition.onend = () => {
      this.#recognition = null;
      this.onend(error === "aborted" || error === "no-speech" ? null : error);
    };
    this.#recognition = recognition;
    recognition.start();
  }

  stop() {
    this.#recognition?.stop();
  }
}

export function speak(text) {
  const utterance = new SpeechSynthesisUtterance(text);
  utterance.lang = "en-US";
  speechSynthesis.speak(utterance);
}
