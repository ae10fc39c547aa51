// Chunks of data: embedded in the page, or fetched from `rl view --serve`. Both are gzip; embedded ones are also base64.

const address = document.documentElement.dataset.chunks; // set by the server

/** Whether the page belongs to a live run. */
export const isServed = address !== undefined;

/**
 * Read a chunk. Waits for an embedded one that the browser has not parsed yet.
 *
 * `isLast`: it is not read again, so that an embedded one can give its memory back.
 */
export async function readChunk(name: string, isLast = false): Promise<Uint8Array> {
  const packed = isServed ? await fetchChunk(name) : decodeBase64(await embedded(name, isLast));
  const { readable, writable } = new DecompressionStream("gzip"); // without a Blob, which would copy the chunk
  const writer = writable.getWriter();
  const written = writer.write(packed).then(() => writer.close());
  const [bytes] = await Promise.all([new Response(readable).arrayBuffer(), written]);
  return new Uint8Array(bytes);
}

/** Read a chunk of JSON. */
export async function readJson<T>(name: string, isLast = false): Promise<T> {
  return parseJson<T>(new TextDecoder().decode(await readChunk(name, isLast)));
}

/** Read a chunk of JSON lines. */
export async function readLines<T>(name: string): Promise<T[]> {
  const text = new TextDecoder().decode(await readChunk(name));
  return text.split("\n").filter(Boolean).map((line) => parseJson<T>(line));
}

/** Read JSON as Python writes it: NaN and Infinity become null. */
export function parseJson<T>(text: string): T {
  try {
    return JSON.parse(text) as T;
  } catch {
    const clean = text.replace(/"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b/g, (part) => (part[0] === '"' ? part : "null"));
    return JSON.parse(clean) as T;
  }
}

async function fetchChunk(name: string): Promise<Uint8Array<ArrayBuffer>> {
  const answer = await fetch(`${address}${name}`);
  if (!answer.ok) throw new Error(`${name}: HTTP ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function embedded(name: string, isLast: boolean): Promise<string> {
  for (;;) {
    const isParsed = document.readyState !== "loading";
    const element = document.getElementById(`chunk:${name}`);
    // An element whose end the browser has not seen yet may be incomplete: something must follow it.
    if (element && (isParsed || element.nextElementSibling)) {
      const text = element.textContent ?? "";
      if (isLast) element.remove();
      return text;
    }
    if (isParsed) throw new Error(`${name}: the page has no such chunk`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

function decodeBase64(text: string): Uint8Array<ArrayBuffer> {
  const native = (Uint8Array as unknown as { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> }).fromBase64;
  if (native) return native(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}
