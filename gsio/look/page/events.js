// The stream of events of all outputs: open while the page is visible, opened again when it was lost.

const AGAIN = 2000; // ms until the next try after the server refused the stream

export class Events {
  source = null;

  /** `onOutput(described)` and `onGone(number)` hear of changes, `onConnection(open)` of the stream itself. */
  constructor({ onOutput, onGone, onConnection }) {
    Object.assign(this, { onOutput, onGone, onConnection });
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#close() : this.#open()));
    window.addEventListener("pagehide", () => this.#close());
    window.addEventListener("pageshow", (event) => event.persisted && this.#open());
    if (!document.hidden) this.#open();
  }

  #open() {
    if (this.source) return;
    const source = new EventSource("./events");
    this.source = source;
    source.addEventListener("open", () => this.onConnection(true));
    source.addEventListener("output", (event) => this.onOutput(JSON.parse(event.data)));
    source.addEventListener("gone", (event) => this.onGone(JSON.parse(event.data).number));
    source.addEventListener("error", () => {
      this.onConnection(false);
      if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      this.#close();
      this.timer = setTimeout(() => this.#open(), AGAIN);
    });
  }

  #close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }
}
