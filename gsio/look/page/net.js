// Requests to the server that served this page. All addresses are relative.

export const DAMAGED = 410; // as the server says where it sees the damage
const RETRIES = 5; // of an answer 503, "too many at once"

export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

const WORDS = {
  403: "The server does not know this browser any more. Open the address again that gsio view printed.",
  404: "The server has no such data. The output may have been deleted or replaced.",
};

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/** Return the answer to a GET request. Throws Refused with one plain line, or AbortError. */
async function get(path, signal, priority = "auto") {
  for (let attempt = 0; ; attempt++) {
    let answer;
    try {
      answer = await fetch(`./${path}`, { signal, priority });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, "The server does not answer. The page tries again by itself.");
    }
    if (answer.ok) return answer;
    if (answer.status === 503 && attempt < RETRIES) {
      await pause(150 * 2 ** attempt, signal);
      continue;
    }
    const line = (await answer.text().catch(() => "")).split("\n")[0].trim().slice(0, 300);
    throw new Refused(answer.status, WORDS[answer.status] ?? (line || `The server answered ${answer.status}.`));
  }
}

export async function getJson(path) {
  return (await get(path)).json();
}

/** Return the bytes of an answer, which the browser has inflated. */
export async function getBytes(path, signal, priority = "auto") {
  const answer = await get(path, signal, priority);
  try {
    return new Uint8Array(await answer.arrayBuffer());
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new Refused(DAMAGED, "The stored bytes cannot be decoded, or the server has ended in the middle of them.");
  }
}

/** Whether an error only says that a newer request replaced this one. */
export function isAbort(error) {
  return error?.name === "AbortError";
}
