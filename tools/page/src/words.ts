// The text filter: which trajectories contain all words of a query, or an exact text in quotes.
//
// The words come from an index (words.py); only an exact text reads the trajectories that contain its words.

import { readChunk } from "./chunks";

const WORD = /[\p{L}\p{N}_]+/gu;

export interface Query {
  words: string[];
  /** Texts in quotes, in lower case. */
  exact: string[];
}

/** Read a query: words in any order; "quoted text" must appear exactly. Case does not matter. */
export function parseQuery(text: string): Query {
  const exact: string[] = [];
  const rest = text.replace(/"([^"]+)"?/g, (_, quoted: string) => {
    exact.push(quoted.toLowerCase());
    return ` ${quoted} `;
  });
  return { words: [...new Set(rest.toLowerCase().match(WORD) ?? [])], exact };
}

interface Block {
  base: number;
  numRows: number;
  vocabulary: string;
  /** Where each word starts in the vocabulary. */
  starts: Uint32Array;
  /** Where each word's rows start in `postings`; one more for the end. */
  offsets: Uint32Array;
  postings: Uint8Array;
}

export class Words {
  private blocks: Promise<Block>[] = [];

  /** Begin to read the blocks that are not read yet. */
  load(sizes: { num_rows: number }[]): void {
    let base = 0;
    sizes.forEach(({ num_rows }, i) => {
      if (i >= this.blocks.length) this.blocks.push(readBlock(i, base, num_rows));
      base += num_rows;
    });
  }

  /** 1 for each trajectory that contains every word, as a part of one of its words. */
  async search(words: string[], numRows: number): Promise<Uint8Array> {
    if (words.length === 0) return new Uint8Array(numRows).fill(1);
    const hits = new Uint8Array(numRows);
    for (const pending of this.blocks) {
      const block = await pending;
      let found: Uint8Array | null = null;
      for (const word of words) {
        const having = rowsWith(block, word);
        if (found) for (let i = 0; i < having.length; i++) having[i] &= found[i];
        found = having;
      }
      if (found) hits.set(found.subarray(0, numRows - block.base), block.base);
    }
    return hits;
  }
}

async function readBlock(number: number, base: number, numRows: number): Promise<Block> {
  const bytes = await readChunk(`words/${number}`, true);
  const end = bytes.indexOf(10);
  const decode = (from: number, to: number): string => new TextDecoder().decode(bytes.subarray(from, to));
  const header = JSON.parse(decode(0, end)) as { num_words: number; vocabulary_bytes: number };
  let at = end + 1 + header.vocabulary_bytes;
  const vocabulary = decode(end + 1, at);
  const starts = new Uint32Array(header.num_words);
  for (let i = 0, word = 0; word < header.num_words; word++) {
    starts[word] = i;
    i = vocabulary.indexOf("\n", i) + 1;
  }
  const counts = new Uint32Array(header.num_words);
  for (let word = 0; word < header.num_words; word++) {
    let value = 0;
    let shift = 0;
    do {
      value |= (bytes[at] & 127) << shift;
      shift += 7;
    } while (bytes[at++] & 128);
    counts[word] = value;
  }
  const postings = bytes.slice(at);
  const offsets = new Uint32Array(header.num_words + 1).fill(postings.length);
  for (let word = 0, i = 0; word < header.num_words; word++) {
    offsets[word] = i;
    for (let left = counts[word]; left > 0; i++) if (postings[i] < 128) left -= 1;
  }
  return { base, numRows, vocabulary, starts, offsets, postings };
}

function rowsWith(block: Block, part: string): Uint8Array {
  const found = new Uint8Array(block.numRows);
  const { vocabulary, starts } = block;
  let word = 0;
  for (let at = vocabulary.indexOf(part); at >= 0; at = vocabulary.indexOf(part, at)) {
    word = wordAt(starts, at, word);
    mark(block, word, found);
    if (++word >= starts.length) break;
    at = starts[word];
  }
  return found;
}

/** The word that contains a position; it is `from` or a later one. */
function wordAt(starts: Uint32Array, position: number, from: number): number {
  let low = from;
  let high = starts.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (starts[middle] <= position) low = middle;
    else high = middle - 1;
  }
  return low;
}

function mark(block: Block, word: number, found: Uint8Array): void {
  const { postings } = block;
  let row = 0;
  for (let at = block.offsets[word]; at < block.offsets[word + 1]; ) {
    let value = 0;
    let shift = 0;
    do {
      value |= (postings[at] & 127) << shift;
      shift += 7;
    } while (postings[at++] & 128);
    row += value;
    found[row] = 1;
  }
}
